"""What a label column says: the same in a file of types and in one of text, or told by its rows."""

from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from peft_jobs.data.tokenized import TokenizedData, load_data
from peft_jobs.errors import DataError
from peft_jobs.spec import TrialSpec


@pytest.fixture
def tokenizer(tiny_bert_path: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_bert_path)


def write(path: Path, labels: Sequence[Any], typed: bool = True, kind: Any = None) -> Path:
    """Rows with these labels; typed, or as the text that a file of text holds."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    cells = labels if typed else [None if cell is None else str(cell) for cell in labels]
    texts = [f"the {number} cat" for number in range(len(labels))]
    table = pa.table({"text": texts, "label": pa.array(cells, type=kind)})
    pq.write_table(table, path)
    return path


def load(path: Path, tokenizer: Any, validation: Path | None = None, **task: Any) -> TokenizedData:
    content = {
        "model": "unused",
        "task": {
            "type": "sequence_classification",
            "text": "{text}",
            **({"label": "label"} | task),
        },
        "data": {"train": str(path), "validation": str(validation or path), "max_length": 16},
    }
    return load_data(TrialSpec.model_validate(content), tokenizer, path.parent)


def load_lists(path: Path, tokenizer: Any, **task: Any) -> TokenizedData:
    return load(path, tokenizer, label=None, labels="label", **task)


@pytest.mark.parametrize(
    ("labels", "classes", "numbers"),
    [
        ([2, 0, 1, 0], (0, 1, 2), [2, 0, 1, 0]),
        ([10, 9, 10], (9, 10), [1, 0, 1]),
        ([1.0, 0.0, 2.0], (0, 1, 2), [1, 0, 2]),
        ([-1, 1, -1], (-1, 1), [0, 1, 0]),
        ([True, False, True], ("false", "true"), [1, 0, 1]),
        (["b", "a", "b"], ("a", "b"), [1, 0, 1]),
        (["01205", "1205", "01205"], ("01205", "1205"), [0, 1, 0]),
        (["+1", "2", "+1"], ("+1", "2"), [0, 1, 0]),
        (["yes", "no", "True"], ("True", "no", "yes"), [2, 1, 0]),
    ],
)
def test_a_column_of_types_and_one_of_text_give_the_same_classes(
    tmp_path: Path, tokenizer: Any, labels: list[Any], classes: Any, numbers: list[int]
) -> None:
    typed = write(tmp_path / "typed.parquet", labels)
    text = write(tmp_path / "text.parquet", labels, typed=False)
    for train, validation in ((typed, text), (text, typed)):
        data = load(train, tokenizer, validation)
        assert data.classes == classes
        assert data.train["label"][:] == data.validation["label"][:] == numbers


@pytest.mark.parametrize("written", ["True False TRUE", "true false true"])
def test_true_and_false_may_be_written_in_any_case(
    tmp_path: Path, tokenizer: Any, written: str
) -> None:
    data = load(write(tmp_path / "rows.parquet", written.split()), tokenizer)
    assert data.classes == ("false", "true")
    assert data.train["label"][:] == [1, 0, 1]


@pytest.mark.parametrize("typed", [True, False])
def test_gaps_are_named_by_row(tmp_path: Path, tokenizer: Any, typed: bool) -> None:
    labels = [1, None, 0, None, None, None, None, None, 1]
    path = write(tmp_path / "rows.parquet", labels, typed)
    expected = f"{path}, rows 2, 4, 5, 6, 7 and 1 more: column 'label' has no label"
    with pytest.raises(DataError) as raised:
        load(path, tokenizer)
    assert str(raised.value) == expected
    for blank in ("", "  "):
        path = write(tmp_path / "blank.parquet", ["a", blank, "b"])
        with pytest.raises(DataError, match="row 2: column 'label' has no label"):
            load(path, tokenizer)
    path = write(tmp_path / "nan.parquet", [1.0, float("nan"), 0.0])
    with pytest.raises(DataError, match="row 2: column 'label' has no label"):
        load(path, tokenizer)


def test_lists_are_no_single_class(tmp_path: Path, tokenizer: Any) -> None:
    path = write(tmp_path / "rows.parquet", ["[1, 0]", '["a"]', '{"a": 1}', "[sic]"])
    with pytest.raises(DataError, match="rows 1, 2, 3: column 'label' holds a list or a mapping"):
        load(path, tokenizer)


@pytest.mark.parametrize("typed", [True, False])
def test_minus_one_is_no_label_where_the_others_count_from_zero(
    tmp_path: Path, tokenizer: Any, typed: bool
) -> None:
    path = write(tmp_path / "rows.parquet", [0, -1, 1, -1], typed)
    with pytest.raises(DataError, match=r"rows 2, 4: label -1 in column 'label' says that there"):
        load(path, tokenizer)
    good = write(tmp_path / "good.parquet", [0, 1, 1], typed)
    with pytest.raises(DataError, match=r"rows\.parquet, rows 2, 4: label -1 .* there is none"):
        load(good, tokenizer, validation=path)
    nothing = write(tmp_path / "nothing.parquet", [-1] * 4, typed)
    with pytest.raises(DataError, match=r"no label in any row \(all are -1"):
        load(nothing, tokenizer)
    lists = write(tmp_path / "lists.parquet", [[0], [-1], [1, 0], [1]])
    with pytest.raises(DataError, match=r"row 2: label -1 in column 'label' says"):
        load_lists(lists, tokenizer)
    ignored = write(tmp_path / "ignored.parquet", [1, -100, 5, -100], typed)
    with pytest.raises(DataError, match=r"rows 2, 4: label -100 in column 'label' says"):
        load(ignored, tokenizer)


@pytest.mark.parametrize("typed", [True, False])
def test_numbers_with_decimals_are_a_regression_or_names_as_the_spec_says(
    tmp_path: Path, tokenizer: Any, typed: bool
) -> None:
    path = write(tmp_path / "rows.parquet", [1.0, 2.5, 1.0], typed)
    with pytest.raises(DataError, match=r"decimals, got 2\.5 in row 2: write problem_type: regr"):
        load(path, tokenizer)
    data = load(path, tokenizer, problem_type="single_label_classification")
    assert data.classes == ("1.0", "2.5")
    assert data.train["label"][:] == [0, 1, 0]
    data = load(path, tokenizer, problem_type="regression")
    assert data.classes == ()
    assert data.train["label"][:] == [1.0, 2.5, 1.0]


def test_decimals_of_a_database_are_numbers(tmp_path: Path, tokenizer: Any) -> None:
    path = write(tmp_path / "rows.parquet", [Decimal("1.50"), Decimal("-2.00")])
    assert load(path, tokenizer, problem_type="regression").train["label"][:] == [1.5, -2.0]


@pytest.mark.parametrize("cell", ["1_0", "one", "nan", "inf", "0x1"])
def test_what_is_no_number_is_no_target(tmp_path: Path, tokenizer: Any, cell: str) -> None:
    path = write(tmp_path / "rows.parquet", ["1.5", cell, "2"])
    with pytest.raises(DataError, match="row 2: column 'label' must hold a finite number"):
        load(path, tokenizer, problem_type="regression")
    gap = write(tmp_path / "gap.parquet", ["1.5", None, "2"])
    with pytest.raises(DataError, match="row 2: column 'label' has no label"):
        load(gap, tokenizer, problem_type="regression")


VECTORS = [[1, 0, 1], [0, 0, 0], [0, 1, 1], [0, 0, 1]]


@pytest.mark.parametrize(
    "spell", [int, float, bool, str, lambda value: str(bool(value)), lambda value: f"{value}.0"]
)
def test_vectors_have_a_class_for_each_place(tmp_path: Path, tokenizer: Any, spell: Any) -> None:
    cells = [[spell(value) for value in vector] for vector in VECTORS]
    path = write(tmp_path / "rows.parquet", cells)
    data = load_lists(path, tokenizer)
    assert data.classes == (0, 1, 2)
    assert data.train["label"][:] == VECTORS
    names = ["red", "green", "blue"]
    named = load_lists(path, tokenizer, label_names=names)
    assert named.classes == ("red", "green", "blue")
    assert named.train["label"][:] == VECTORS
    with pytest.raises(DataError, match=r"of 3 classes, and 2 are named: red, green"):
        load_lists(path, tokenizer, label_names=names[:2])


@pytest.mark.parametrize(
    ("lists", "classes", "examples"),
    [
        ([[0, 1], [1], [0]], (0, 1), [[1, 1], [0, 1], [1, 0]]),
        ([[0, 1], [], [0]], (0, 1), [[1, 1], [0, 0], [1, 0]]),
        ([[0, 2], [1, 2]], (0, 1, 2), [[1, 0, 1], [0, 1, 1]]),
        ([["2", "0"], ["1", "2"]], (0, 1, 2), [[1, 0, 1], [0, 1, 1]]),
        ([["b", "a", "b"], []], ("a", "b"), [[1, 1], [0, 0]]),
        ([["1", "1", "a"], []], ("1", "a"), [[1, 1], [0, 0]]),
    ],
)
def test_lists_of_classes_stay_lists_of_classes(
    tmp_path: Path, tokenizer: Any, lists: list[Any], classes: Any, examples: list[Any]
) -> None:
    data = load_lists(write(tmp_path / "rows.parquet", lists), tokenizer)
    assert data.classes == classes
    assert data.train["label"][:] == examples


def test_lists_that_can_be_read_in_two_ways_are_refused_until_the_spec_says_which(
    tmp_path: Path, tokenizer: Any
) -> None:
    path = write(tmp_path / "rows.parquet", [[0, 1], [1, 0], [0, 1]])
    with pytest.raises(DataError, match=r"can be vectors .* or lists of the classes 0 and 1: wr"):
        load_lists(path, tokenizer)
    vectors = load_lists(path, tokenizer, multi_hot=True)
    assert vectors.train["label"][:] == [[0, 1], [1, 0], [0, 1]]
    lists = load_lists(path, tokenizer, multi_hot=False)
    assert lists.train["label"][:] == [[1, 1], [1, 1], [1, 1]]
    floats = write(tmp_path / "floats.parquet", [[0.0, 1.0], [1.0, 0.0]])
    assert load_lists(floats, tokenizer).train["label"][:] == [[0, 1], [1, 0]]
    one = write(tmp_path / "one.parquet", [[0], [1], [0]])
    with pytest.raises(DataError, match="can be vectors"):
        load_lists(one, tokenizer)
    assert load_lists(one, tokenizer, multi_hot=False).classes == (0, 1)
    with pytest.raises(DataError, match="must have one length, of at least 2 classes, got 1"):
        load_lists(one, tokenizer, multi_hot=True)


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ([[0, 0, 1], [1]], "row 1: column 'label' holds a number twice"),
        ([[3, 0, 0], [1, 2, 0]], "row 1: column 'label' holds a number twice"),
        ([[True, False], [True]], "must have one length, of at least 2 classes, got 1, 2"),
        ([["a", None], ["b"]], "row 1: the list in column 'label' has a gap"),
        ([[0.3, 0.7], [1.0, 0.0]], r"decimals, got 0\.3 in row 1: give integers or names"),
        ([[0, 1], None], "row 2: column 'label' must hold a list"),
        ([[0, None], [1, 2]], "row 1: the list in column 'label' has a gap"),
        ([[], []], "has no label in any row"),
        ([["a"], ["a"]], "holds one class only: 'a'"),
    ],
)
def test_lists_that_are_neither_are_named_by_row(
    tmp_path: Path, tokenizer: Any, lists: list[Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        load_lists(write(tmp_path / "rows.parquet", lists), tokenizer)


def test_vectors_of_another_length_in_the_validation_rows_are_named(
    tmp_path: Path, tokenizer: Any
) -> None:
    path = write(tmp_path / "rows.parquet", VECTORS)
    for odd in ([1, 0], [1, 0, 2], [1, 0, 1, 1]):
        other = write(tmp_path / "other.parquet", [[1, 0, 0], odd])
        with pytest.raises(DataError, match="row 2: column 'label' must hold a 0 or 1 for each of"):
            load(path, tokenizer, other, label=None, labels="label")


def test_columns_of_flags_may_be_text(tmp_path: Path, tokenizer: Any) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    flags = {"a": ["1", "0", "1"], "b": ["true", "False", "TRUE"], "c": [0.0, 1.0, 1.0]}
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"text": ["the", "a", "cat"], **flags}), path)
    data = load(path, tokenizer, label=None, labels=["a", "b", "c"])
    assert data.train["label"][:] == [[1, 1, 0], [0, 0, 1], [1, 1, 1]]


def test_numbers_may_be_given_names(tmp_path: Path, tokenizer: Any) -> None:
    typed = write(tmp_path / "typed.parquet", [1, 0, 2])
    text = write(tmp_path / "text.parquet", ["1", "0", "never"])
    names = ["yes", "no", "never"]
    data = load(typed, tokenizer, text, label_names=names)
    assert data.classes == ("yes", "no", "never")
    assert data.train["label"][:] == data.validation["label"][:] == [1, 0, 2]
    with pytest.raises(DataError, match=r"row 3: label 2 in column 'label' is not among the 2"):
        load(typed, tokenizer, label_names=names[:2])
