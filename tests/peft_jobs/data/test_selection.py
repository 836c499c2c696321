"""Which rows are read, held out and chosen, what is refused, and how tokens are cached."""

import json
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from peft_jobs.data.selection import hold_out, select, subset
from peft_jobs.data.sources import read
from peft_jobs.data.tokenized import load_data
from peft_jobs.errors import DataError, SpecError
from peft_jobs.spec import Source, TrialSpec

TASK = {"type": "causal_lm", "prompt": "{question}", "response": "{answer}"}
CLASSES = {"type": "sequence_classification", "text": "{text}", "label": "label"}


def rows_of(num_rows: int) -> list[dict[str, Any]]:
    animals, verbs = ("cat", "dog", "bird"), ("sees", "likes", "chases")
    return [
        {
            "question": f"the {animals[i % 3]} {verbs[i // 3 % 3]} {i % 10} ?",
            "answer": f"a {animals[i // 2 % 3]} {i % 7} .",
        }
        for i in range(num_rows)
    ]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def trial(train: Path, task: dict[str, Any] = TASK, **data: Any) -> TrialSpec:
    content = {"model": "unused", "task": task, "data": {"train": str(train), **data}}
    return TrialSpec.model_validate(content)


@pytest.fixture
def tokenizer(tiny_llama_path: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_llama_path)


def test_a_second_source_follows_the_first_and_a_share_is_held_out_of_both(tmp_path: Path) -> None:
    rows = rows_of(25)
    first, second = write_jsonl(tmp_path / "a.jsonl", rows[:15]), tmp_path / "b.jsonl"
    write_jsonl(second, [dict(reversed(row.items())) for row in rows[15:]])
    whole = write_jsonl(tmp_path / "whole.jsonl", rows)
    for size in (None, 0.5):
        two = trial(first, train_also=str(second), validation=0.2, subset=size).data
        one = trial(whole, validation=0.2, subset=size).data
        for split in ("train", "validation"):
            found, wanted = (select(data, split, tmp_path / "cache") for data in (two, one))
            assert found.numbers() == wanted.numbers()
            assert found.rows.dataset.to_list() == wanted.rows.dataset.to_list()
            assert found.fingerprint != wanted.fingerprint
    alone = select(trial(first).data, "train", tmp_path / "cache")
    assert alone.fingerprint != select(two, "train", tmp_path / "cache").fingerprint


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (
            {"question": "q", "reply": "r"},
            r"b\.parquet has the columns question, reply, and .*a",
        ),
        ({"question": "q", "answer": 7}, r"column 'answer' of .*b\.parquet holds Value.*int64"),
    ],
)
def test_a_second_source_of_other_columns(tmp_path: Path, row: dict[str, Any], told: str) -> None:
    first = write_jsonl(tmp_path / "a.jsonl", rows_of(5))
    second = tmp_path / "b.parquet"
    Dataset.from_list([row, row]).to_parquet(second)
    with pytest.raises(DataError, match=rf"^data\.train_also: .*{told}"):
        select(trial(first, train_also=str(second)).data, "train", tmp_path / "cache")


def test_held_out_rows_are_disjoint_from_training_rows_and_lose_none() -> None:
    for num_rows, share in ((2, 0.9), (10, 0.01), (101, 0.1), (1000, 0.25)):
        train, held = hold_out(num_rows, share, seed=3)
        assert sorted(train + held) == list(range(num_rows))
        assert train
        assert len(held) == min(max(1, round(share * num_rows)), num_rows - 1)
    assert hold_out(100, 0.1, seed=0)[1] != hold_out(100, 0.1, seed=1)[1]
    with pytest.raises(DataError, match="leaves nothing to train on"):
        hold_out(1, 0.1, seed=0)


def test_smaller_subsets_lie_inside_larger_ones() -> None:
    rows = list(range(0, 300, 3))
    sizes: list[float | int] = [0.05, 0.1, 20, 0.5, 99]
    chosen = [set(subset(rows, size, 7, "data.subset")) for size in sizes]
    assert [len(part) for part in chosen] == [5, 10, 20, 50, 99]
    assert all(small < large for small, large in pairwise(chosen))
    assert subset(rows, None, 7, "data.subset") == subset(rows, 100, 7, "data.subset") == rows
    with pytest.raises(SpecError, match=r"data\.subset must be <= 100, .* got 101"):
        subset(rows, 101, 7, "data.subset")


def test_subsets_of_the_training_rows_leave_the_validation_rows_alone(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", rows_of(60))
    whole, part = trial(path, validation=0.2), trial(path, validation=0.2, subset=0.5)
    validation = select(whole.data, "validation", tmp_path)
    assert validation.numbers() == select(part.data, "validation", tmp_path).numbers()
    assert validation.fingerprint == select(part.data, "validation", tmp_path).fingerprint
    train = select(part.data, "train", tmp_path)
    assert len(train.numbers()) == 24
    assert not set(train.numbers()) & set(validation.numbers())
    assert train.fingerprint != select(whole.data, "train", tmp_path).fingerprint


def test_all_local_formats_give_the_same_rows(tmp_path: Path) -> None:
    from datasets import Dataset

    rows = [{"question": "a cat", "answer": "NA"}, {"question": "None", "answer": "null"}]
    jsonl = write_jsonl(tmp_path / "rows.jsonl", rows)
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    (tmp_path / "rows.csv").write_text("question,answer\na cat,NA\nNone,null\n")
    Dataset.from_list(rows).to_parquet(str(tmp_path / "rows.parquet"))
    for path in (jsonl, *(tmp_path / f"rows.{end}" for end in ("json", "csv", "parquet"))):
        read_rows = read(Source(path=str(path)), "train", tmp_path / "cache")
        assert read_rows.dataset.to_list() == rows, path


def test_lines_of_a_text_are_rows_but_for_blank_ones(tmp_path: Path) -> None:
    (tmp_path / "rows.txt").write_text("first\n\n  \nsecond : a, b\n")
    rows = read(Source(path=str(tmp_path / "rows.txt")), "train", tmp_path / "cache")
    assert rows.dataset.to_list() == [{"text": "first"}, {"text": "second : a, b"}]


def test_groups_are_held_out_whole() -> None:
    groups = [number // 3 for number in range(30)]
    for share in (0.05, 0.2, 0.5, 0.99):
        train, held = hold_out(30, share, 0, groups)
        assert sorted(train + held) == list(range(30))
        assert train
        assert held
        assert not {groups[row] for row in train} & {groups[row] for row in held}
        assert abs(len(held) - 30 * share) <= 3
    alone = [*range(29), 28]
    assert len(hold_out(30, 0.1, 0, alone)[1]) in (3, 4)
    with pytest.raises(DataError, match=r"data\.group_by: all rows are of one group"):
        hold_out(30, 0.1, 0, [7] * 30)


def test_the_demo_is_a_source(tmp_path: Path) -> None:
    found = {s: read(Source(path="demo"), s, tmp_path) for s in ("train", "validation", "test")}
    assert len({rows.fingerprint for rows in found.values()}) == 3
    with pytest.raises(SpecError, match="no split 'trian'; did you mean 'train'"):
        read(Source(path="demo", split="trian"), "train", tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.jsonl", "", "holds no rows"),
        ("rows.csv", "question,answer\n", "holds no rows"),
        ("rows.jsonl", "{bad\n", "cannot be read as json"),
        ("rows.parquet", "no parquet", "cannot be read as parquet"),
    ],
)
def test_unreadable_and_empty_files_are_named(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(DataError, match=message) as raised:
        read(Source(path=str(path)), "train", tmp_path / "cache")
    assert str(path) in str(raised.value)


def test_a_source_that_is_not_there_is_a_mistake_of_the_spec(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"data\.train: no such file: .*gone\.jsonl"):
        read(Source(path=str(tmp_path / "gone.jsonl")), "train", tmp_path)
    (tmp_path / "rows.md").write_text("text")
    with pytest.raises(
        SpecError, match=r"must end in one of \.json, \.jsonl, \.ndjson, \.csv, \.tsv"
    ):
        read(Source(path=str(tmp_path / "rows.md")), "train", tmp_path)


def test_a_missing_column_is_named_with_the_ones_there_are(tmp_path: Path, tokenizer: Any) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", rows_of(4))
    task = {"type": "causal_lm", "prompt": "{queston}", "response": "{answer}"}
    with pytest.raises(DataError) as raised:
        load_data(trial(path, task), tokenizer, tmp_path)
    assert str(raised.value) == (
        f"task.prompt uses column 'queston', which {path} does not have"
        "; did you mean 'question'? known: answer, question"
    )


def test_rows_without_a_response_are_named(tmp_path: Path, tokenizer: Any) -> None:
    rows = rows_of(20)
    for number in (2, 5, 6, 7, 9, 12):
        rows[number - 1]["answer"] = None if number % 2 else "  "
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    with pytest.raises(DataError) as raised:
        load_data(trial(path), tokenizer, tmp_path)
    expected = f"{path}, rows 2, 5, 6, 7, 9 and 1 more: the response is empty (column 'answer')"
    assert str(raised.value) == expected
    assert not list((tmp_path / "tokens").iterdir())


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, None, 1, 0], r"row 2: column 'label' has no label"),
        ([1, 1, 1, 1], r"holds one class only: 1"),
        ([0.5, 1.5, 0.5, 1.5], r"decimals, got 0\.5 in row 1: write problem_type: regression"),
    ],
)
def test_labels_that_are_no_classes_are_refused(
    tmp_path: Path, tokenizer: Any, labels: list[Any], message: str
) -> None:
    rows = [{"text": "good cat", "label": label} for label in labels]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    with pytest.raises(DataError, match=message):
        load_data(trial(path, CLASSES), tokenizer, tmp_path)


def test_classes_are_sorted_and_those_of_all_training_rows(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"text": f"good cat {i}", "label": ("red", "blue", "green")[i % 3]} for i in range(12)]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    data = load_data(trial(path, CLASSES, subset=2, validation=0.5), tokenizer, tmp_path)
    assert data.classes == ("blue", "green", "red")
    assert len(data.train) == 2
    numbered = write_jsonl(tmp_path / "n.jsonl", [r | {"label": i % 2} for i, r in enumerate(rows)])
    assert load_data(trial(numbered, CLASSES, validation=0.5), tokenizer, tmp_path).classes == (
        0,
        1,
    )
    other = write_jsonl(tmp_path / "other.jsonl", [rows[0], {"text": "a", "label": "pink"}])
    with pytest.raises(DataError, match=r"other\.jsonl, row 2: label 'pink' .* not among the 3"):
        load_data(trial(path, CLASSES, validation=str(other)), tokenizer, tmp_path)


def write_named(path: Path, labels: list[int], names: list[str]) -> Path:
    """Rows whose labels are numbers with names; the words of a text tell the number."""
    from datasets import ClassLabel, Dataset, Features, Value

    rows = {"text": [f"good cat {label}" for label in labels], "label": labels}
    features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
    Dataset.from_dict(rows, features=features).to_parquet(str(path))
    return path


def test_a_data_set_may_name_the_numbers_of_its_labels(tmp_path: Path, tokenizer: Any) -> None:
    names = ["yes", "maybe", "no", "never"]
    path = write_named(tmp_path / "rows.parquet", [0, 2, 1, 0, 2], names)
    turned = write_named(tmp_path / "turned.parquet", [0, 3, 2], names[::-1])
    plain = write_jsonl(
        tmp_path / "plain.jsonl", [{"text": "a", "label": 2}, {"text": "a", "label": 0}]
    )
    data = load_data(trial(path, CLASSES, validation=str(turned)), tokenizer, tmp_path)
    assert data.classes == tuple(names), "also the one that no row has"
    assert data.train["label"][:] == [0, 2, 1, 0, 2]
    assert data.validation["label"][:] == [3, 0, 1], "each split's numbers are those of its names"
    data = load_data(trial(path, CLASSES, validation=str(plain)), tokenizer, tmp_path)
    assert data.validation["label"][:] == [2, 0]
    # Names without numbers have none: their order is ours.
    words = write_jsonl(tmp_path / "words.jsonl", [{"text": "a", "label": n} for n in names])
    with pytest.raises(
        DataError, match=r"plain\.jsonl, row 1: label '2' .* not among the 4 classes"
    ):
        load_data(trial(words, CLASSES, validation=str(plain)), tokenizer, tmp_path)


@pytest.mark.parametrize(
    ("number", "what"),
    [
        (-1, "-1 in column 'label' says that there is none"),
        (3, "3 in column 'label' is not among the 3 classes"),
    ],
)
def test_a_number_that_has_no_name_is_no_class(
    tmp_path: Path, tokenizer: Any, number: int, what: str
) -> None:
    import pyarrow.parquet as pq

    path = write_named(tmp_path / "rows.parquet", [0, 2, 1, 0], ["yes", "maybe", "no"])
    table = pq.read_table(path)
    labels = table.column("label").to_pylist()
    odd = table.set_column(1, table.schema.field("label"), [[*labels[:2], number, labels[3]]])
    pq.write_table(odd, path)
    with pytest.raises(
        DataError,
        match=rf"rows\.parquet, row 3: label {what}",
    ):
        load_data(trial(path, CLASSES, validation=str(path)), tokenizer, tmp_path)


def test_rows_cut_before_their_response_are_left_out_and_counted(
    tmp_path: Path, tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    rows = rows_of(10)
    for row in rows[:3]:
        row["question"] = "the cat " * 10
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    with caplog.at_level(logging.WARNING):
        data = load_data(trial(path, validation=str(path), max_length=12), tokenizer, tmp_path)
    assert data.dropped == {"train": 3, "validation": 3}
    assert len(data.train) == 7
    assert f"{path}: 3 of 10 train rows have no supervised token" in caplog.text
    assert all(len(tokens) <= 12 for tokens in data.train["input_ids"])
    with pytest.raises(DataError, match=r"none of 10 rows .* data\.max_length = 2; raise it"):
        load_data(trial(path, validation=str(path), max_length=2), tokenizer, tmp_path)


def test_tokens_are_written_once_and_mapped(tmp_path: Path, tokenizer: Any) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", rows_of(30))
    first = load_data(trial(path), tokenizer, tmp_path)
    files = {f: f.stat().st_mtime_ns for f in (tmp_path / "tokens").rglob("*") if f.is_file()}
    assert files
    os.utime(path)  # touched, not changed
    second = load_data(trial(path), tokenizer, tmp_path)
    assert files == {
        f: f.stat().st_mtime_ns for f in (tmp_path / "tokens").rglob("*") if f.is_file()
    }
    assert second.train.to_list() == first.train.to_list()
    mapped = [Path(file["filename"]) for file in second.train.cache_files]
    assert mapped
    assert set(mapped) <= set(files)
    assert str(mapped[0]) in Path("/proc/self/maps").read_text()

    write_jsonl(path, rows_of(31))
    assert load_data(trial(path), tokenizer, tmp_path).fingerprints != first.fingerprints
    longer = load_data(trial(path, max_length=9), tokenizer, tmp_path)
    assert longer.fingerprints["template"] != first.fingerprints["template"]


def test_fingerprints_follow_content_not_place(tmp_path: Path, tokenizer: Any) -> None:
    here = write_jsonl(tmp_path / "here.jsonl", rows_of(20))
    there = write_jsonl(tmp_path / "there.jsonl", rows_of(20))
    first = load_data(trial(here), tokenizer, tmp_path)
    assert load_data(trial(there), tokenizer, tmp_path).fingerprints == first.fingerprints
    smaller = load_data(trial(here, subset=0.5), tokenizer, tmp_path)
    changed = {k for k, v in smaller.fingerprints.items() if v != first.fingerprints[k]}
    assert changed == {"train_data"}
    assert len(list((tmp_path / "tokens").iterdir())) == 3


def test_a_tokenizer_that_was_used_is_still_the_same_tokenizer(
    tmp_path: Path, tokenizer: Any
) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", rows_of(20))
    load_data(trial(path), tokenizer, tmp_path)
    entries = sorted((tmp_path / "tokens").iterdir())
    tokenizer("the cat sees", truncation=True, max_length=2)
    load_data(trial(path), tokenizer, tmp_path)
    assert sorted((tmp_path / "tokens").iterdir()) == entries


def test_writers_at_the_same_time_leave_one_whole_entry(
    tmp_path: Path, tiny_llama_path: Path
) -> None:
    from transformers import AutoTokenizer

    path = write_jsonl(tmp_path / "rows.jsonl", rows_of(200))

    def load(_: int) -> list[Any]:
        own = AutoTokenizer.from_pretrained(tiny_llama_path)
        data: list[Any] = load_data(trial(path), own, tmp_path).train.to_list()
        return data

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(load, range(4)))
    assert found[0]
    assert all(rows == found[0] for rows in found)
    assert len(list((tmp_path / "tokens").iterdir())) == 2  # train and validation, nothing beside
