"""Cells of text files are the text that stands in them, whatever the format."""

import bz2
import csv
import gzip
import json
import lzma
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from peft_jobs.data.sources import _from_hub, read
from peft_jobs.data.tokenized import load_data
from peft_jobs.errors import DataError
from peft_jobs.spec import Source, TrialSpec
from peft_jobs.spec.templates import render

ZSTANDARD = b"\x28\xb5\x2f\xfd\x04\x00\x41\x00\x00"
WRITTEN = (
    *("2024-01-05", "2024-05-01T08:30:00+02:00", "2024-05-01 08:30", "08:30", "01205", "007"),
    *("5.50", "1e5", "1.10", "+47", "+4712345678", "1234567890123456789", "1234567890123456789012"),
    *(
        "-0",
        "0x1F",
        "1_000",
        "1,5",
        "true",
        "False",
        "NA",
        "None",
        "null",
        "nan",
        "inf",
        "  x ",
        "é",
    ),
    *('"quoted"', 'a "b" c', "a,b", "a;b", "'", "\\n", "[1, 2]", '{"a": 1}', "1/2", "$5", "12%"),
)


def rows_of(path: Path, cache: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = read(Source(path=str(path)), "train", cache).dataset.to_list()
    return rows


def jsonl(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def separated(delimiter: str, **options: Any) -> Callable[[Path, list[dict[str, Any]]], None]:
    def write(path: Path, rows: list[dict[str, Any]]) -> None:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter, **options)
            writer.writeheader()
            writer.writerows(rows)

    return write


WRITERS: dict[str, Callable[[Path, list[dict[str, Any]]], Any]] = {
    "rows.jsonl": lambda path, rows: path.write_text(jsonl(rows)),
    "ROWS.JSONL": lambda path, rows: path.write_text(jsonl(rows)),
    "rows.ndjson": lambda path, rows: path.write_bytes(b"\xef\xbb\xbf" + jsonl(rows).encode()),
    "rows.json": lambda path, rows: path.write_text(json.dumps(rows, indent=1)),
    "columns.json": lambda path, rows: path.write_text(
        json.dumps({name: [row[name] for row in rows] for name in rows[0]}, indent=1)
    ),
    "rows.jsonl.gz": lambda path, rows: path.write_bytes(gzip.compress(jsonl(rows).encode())),
    "rows.jsonl.bz2": lambda path, rows: path.write_bytes(bz2.compress(jsonl(rows).encode())),
    "rows.JSON.xz": lambda path, rows: path.write_bytes(lzma.compress(json.dumps(rows).encode())),
    "one-line.json": lambda path, rows: path.write_text(
        json.dumps({name: [row[name] for row in rows] for name in rows[0]})
    ),
    "of-pandas.json": lambda path, rows: pd.DataFrame(rows).to_json(path),
    "mac.csv": separated(",", lineterminator="\r"),
    "mac.jsonl": lambda path, rows: path.write_text(jsonl(rows).replace("\n", "\r")),
    "rows.csv": separated(","),
    "all-quoted.csv": separated(",", quoting=csv.QUOTE_ALL, lineterminator="\n"),
    "rows.tsv": separated("\t"),
    "rows.parquet": lambda path, rows: Dataset.from_list(rows).to_parquet(str(path)),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_cell_is_the_text_of_the_file(name: str, tmp_path: Path) -> None:
    rows = [{"q": f"row {n}", "a": text} for n, text in enumerate(WRITTEN)]
    WRITERS[name](tmp_path / name, rows)
    assert rows_of(tmp_path / name, tmp_path / "cache") == rows


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    texts=st.lists(
        st.one_of(
            st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1),
            st.integers().map(str),
            st.floats(allow_nan=False).map(repr),
            st.datetimes().map(lambda moment: moment.isoformat()),
            st.dates().map(str),
        ).filter(str.strip),
        min_size=3,
        max_size=6,
    )
)
def test_two_formats_give_the_same_tokens(
    texts: list[str], tmp_path_factory: pytest.TempPathFactory, tiny_llama_path: Path
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_llama_path)
    folder = tmp_path_factory.mktemp("formats")
    rows = [{"q": f"{n}", "a": text} for n, text in enumerate(texts)]
    task = {"type": "causal_lm", "prompt": "{q}", "response": "{a}"}
    found = []
    for number, (name, write) in enumerate(WRITERS.items()):
        (folder / str(number)).mkdir()
        path = folder / str(number) / name
        write(path, rows)
        data = {"train": str(path), "validation": str(path)}
        spec = TrialSpec.model_validate({"model": "unused", "task": task, "data": data})
        found.append(load_data(spec, tokenizer, folder / "cache").train.to_list())
    assert found[0]
    assert all(tokens == found[0] for tokens in found)


def test_numbers_of_json_stay_as_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    numbers = [
        "1",
        "2.5",
        "1.10",
        "5.0",
        "1e5",
        "-0.0",
        "12345678901234567890",
        "1E-7",
        "-0",
        "9" * 5000,
    ]
    path.write_text("".join(f'{{"n": {number}}}\n' for number in numbers))
    assert [row["n"] for row in rows_of(path, tmp_path)] == numbers


def test_nested_values_are_json(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    value = '{"city": "Zürich", "price": 1.50, "tags": ["a\\"", null, true], "n": {}}'
    path.write_text(f'{{"v": {value}}}\n{{"v": "plain"}}\n{{"v": null}}\n{{"late": 5}}\n')
    rows = rows_of(path, tmp_path)
    assert [row["v"] for row in rows] == [value, "plain", None, None]
    assert rows[3]["late"] == "5"
    assert render("{v}", rows[0]) == value
    frame = tmp_path / "rows.parquet"
    Dataset.from_list([{"v": {"city": "Zürich", "tags": ["a", None]}}]).to_parquet(str(frame))
    (row,) = rows_of(frame, tmp_path)
    assert render("{v}", row) == '{"city": "Zürich", "tags": ["a", null]}'


def test_types_and_keys_may_come_late_in_large_files(tmp_path: Path) -> None:
    rows = [{"q": f"row {n}", "input": None, "code": str(n)} for n in range(12_000)]
    rows[-1] |= {"input": "late", "code": "A7", "note": "only here"}
    (tmp_path / "rows.jsonl").write_text(jsonl(rows))
    separated(",")(tmp_path / "rows.csv", [{"note": None, **row} for row in rows])
    for name in ("rows.jsonl", "rows.csv"):
        found = rows_of(tmp_path / name, tmp_path)
        assert len(found) == 12_000
        assert found[0] == {"q": "row 0", "input": None, "code": "0", "note": None}
        assert found[-1] == rows[-1]


def test_typed_cells_have_the_text_that_files_of_text_have(tmp_path: Path) -> None:
    import datetime as dt
    from decimal import Decimal

    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {
        "price": pa.array([Decimal("5.50")]),
        "share": pa.array([0.1], pa.float32()),
        "shares": pa.array([[0.1, None, 1e-7]], pa.list_(pa.float32())),
        "half": pa.array([[[0.1]]], pa.large_list(pa.list_(pa.float16(), 1))),
        "box": pa.array([[{"x": 0.1, "n": 2}]], pa.list_(pa.struct({"x": "f4", "n": "i8"}))),
        "count": pa.array([5], pa.int8()),
        "flag": pa.array([True]),
        "day": pa.array([dt.date(2024, 1, 5)]),
        "gap": pa.array([None], pa.int64()),
        "when": pa.array([dt.datetime(2024, 1, 5, 8, 30)]),
    }
    pq.write_table(
        pa.table({k: pa.concat_arrays([v] * 4) for k, v in columns.items()}), tmp_path / "r.parquet"
    )
    names = "|".join(f"{{{name}}}" for name in columns)
    task = {"type": "causal_lm", "text": names}
    data = {"train": str(tmp_path / "r.parquet"), "validation": 0.5}
    spec = TrialSpec.model_validate({"model": "unused", "task": task, "data": data})
    from peft_jobs.data.task_rows import task_rows
    from peft_jobs.tasks import TASKS

    rows = read(Source(path=str(tmp_path / "r.parquet")), "train", tmp_path)
    row = task_rows(rows, spec.data, TASKS["causal_lm"], spec.task)(rows.dataset[0])
    assert render(names, row) == (
        '5.50|0.1|[0.1, null, 1e-07]|[[0.1]]|[{"x": 0.1, "n": 2}]|5|true|2024-01-05||'
        "2024-01-05 08:30:00"
    )


@pytest.fixture
def python_s_own_recursion_limit() -> Iterator[None]:
    """Libraries raise it, Hypothesis among them, and what ran before decides whether they did."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(1000)
    yield
    sys.setrecursionlimit(before)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("r.jsonl", b'{"a": 1}\n{"a": \n', r"cannot be read as json: line 2: Expecting value"),
        ("r.jsonl", b'{"a": 1}\n[1, 2]\n', r"line 2: '\[1, 2\]' is no object"),
        ("r.json", b'[{"a": 1}, 5]', r"row 2: '5' is no object"),
        ("r.json", b'[\n{"a": 1},\n{"a"}]', r"cannot be read as json: line 3: Expecting ':'"),
        ("r.json", b'{"version": 1,\n "data": []}', r"one value with the keys 'version', 'data'"),
        ("r.jsonl", b'{"a": "\\ud83d"}\n', r"line 1: column 'a' holds half of a character"),
        ("r.jsonl", '{"a": "é"}'.encode("latin-1"), r"line 1: is no UTF-8 text"),
        ("r.csv", "a\né\n".encode("utf-16"), r"line 1: is no UTF-8 text"),
        ("r.csv", b"a,b\n1,2\n1,2,3\n", r"line 3: has 3 cells, the header 2"),
        ("r.csv", b'a,b\n1,"2\n3,4\n', r"cannot be read as csv: line 3: unexpected end of data"),
        ("r.tsv", b"a\tb\n1\t2\t3\n", r"line 2: has 3 cells, the header 2"),
        ("r.tsv", b'a\tb\n"x\ny"\t2\n', r"line 2: has 1 cells, .* needs a file of CSV"),
        (
            "r.tsv",
            b'a\n"x\n\ny ""z"""\n',
            r"line 2: a quoted cell goes on to line 4; .* file of CSV",
        ),
        ("r.jsonl", ZSTANDARD, r"compressed by zstandard: unpack it"),
        ("r.csv", b"PK\x03\x04\xff", r"compressed by zip: unpack it"),
        ("r.jsonl.xz", lzma.compress(b'{"a": 1}\n')[:-9], r"cannot be read: Compressed file ended"),
        ("r.json", b'{"data": [{"a": 1}, {"a": 2}]}', r"one value with the keys 'data'.*\.jsonl"),
        ("r.csv", b"a,b\n1,2\r3,4\n", r"line 2: new-line character seen in unquoted field$"),
        ("r.jsonl", b'{"a": ' + b"[" * 900 + b"]" * 900 + b"}", r"nested too deeply"),
        (
            "r.jsonl.gz",
            gzip.compress(b'{"a": 1}\n', mtime=0)[:-9],
            r"cannot be read: Compressed file ended",
        ),
        ("r.jsonl", b"[" * 100_000, r"cannot be read as json: line 1: is nested too deeply"),
    ],
)
def test_what_cannot_be_read_is_told_with_its_line(
    name: str, content: bytes, message: str, tmp_path: Path, python_s_own_recursion_limit: None
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as raised:
        rows_of(tmp_path / name, tmp_path / "cache")
    assert str(tmp_path / name) in str(raised.value)


def test_lines_break_where_files_say(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_bytes('{"a": "x\u2028y"}\r\n\r\n{"a": "z"}'.encode())
    assert [row["a"] for row in rows_of(tmp_path / "r.jsonl", tmp_path)] == ["x\u2028y", "z"]
    (tmp_path / "r.csv").write_bytes(b'a,b\r\n"x\r\ny",1\r\n\r\nz,2\r\n')
    assert rows_of(tmp_path / "r.csv", tmp_path) == [
        {"a": "x\r\ny", "b": "1"},
        {"a": "z", "b": "2"},
    ]
    (tmp_path / "r.tsv").write_bytes(b'a\tb\n"It is , he said\t1\nno "quote\t2\n"a ""b"""\t3\n')
    found = [row["a"] for row in rows_of(tmp_path / "r.tsv", tmp_path)]
    assert found == ['"It is , he said', 'no "quote', 'a "b"']


def test_the_only_line_of_jsonl_is_a_row(tmp_path: Path) -> None:
    line = '{"tokens": ["a", "b"], "tags": ["O", "O"]}'
    for name in ("r.jsonl", "r.ndjson", "r.json"):
        (tmp_path / name).write_text(line)
    row = {"tokens": '["a", "b"]', "tags": '["O", "O"]'}
    assert rows_of(tmp_path / "r.jsonl", tmp_path) == [row]
    assert rows_of(tmp_path / "r.ndjson", tmp_path) == [row]
    columns = [{"tokens": "a", "tags": "O"}, {"tokens": "b", "tags": "O"}]
    assert rows_of(tmp_path / "r.json", tmp_path) == columns


def test_a_single_column_of_tsv_may_hold_quotes(tmp_path: Path) -> None:
    lines = ['"It is , he said', "no", '"a" or "b"', 'he said it"', '"c" ""', 'd""']
    (tmp_path / "r.tsv").write_text("\n".join(["text", *lines]))
    assert [row["text"] for row in rows_of(tmp_path / "r.tsv", tmp_path)] == lines


def test_columns_without_a_name_have_pandas_names(tmp_path: Path) -> None:
    text = ",a,a,b\n0,1,2,3\n"
    (tmp_path / "r.csv").write_text(text)
    (row,) = rows_of(tmp_path / "r.csv", tmp_path)
    assert list(row) == list(pd.read_csv(tmp_path / "r.csv").columns)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.tsv", "rows.jsonl.gz"])
def test_a_hub_data_set_of_text_files_is_read_as_it_stands(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder laid out as on the Hub goes the same way through `datasets`."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [{"q": f"row {n}", "a": text} for n, text in enumerate(WRITTEN)]
    (tmp_path / "hub" / "data").mkdir(parents=True)
    WRITERS[name](tmp_path / "hub" / "data" / name.replace("rows", "train"), rows)
    WRITERS[name](tmp_path / "hub" / "data" / name.replace("rows", "test"), rows[:4])
    source = Source(path=str(tmp_path / "hub"))
    assert _from_hub(source, "train", tmp_path).dataset.to_list() == rows
    assert _from_hub(source, "test", tmp_path).dataset.to_list() == rows[:4]
    part = _from_hub(source, "train[:2]+test[-1:]", tmp_path)
    assert part.dataset.to_list() == [*rows[:2], rows[3]]
    assert part.fingerprint != _from_hub(source, "train", tmp_path).fingerprint


CLASSES = (
    "- name: {}\n    dtype:\n      class_label:\n        names:\n"
    "          '0': neg\n          '1': pos\n"
)
TEXT = "- name: {}\n    dtype: string\n"
NAMED = TEXT.format("q") + CLASSES.format("a")
TAGGED = TEXT.format("q") + "- name: a\n    sequence:\n      class_label:\n"
TAGGED += "        names:\n          '0': O\n          '1': B-X\n"
DAY = "2024-05-05"
TEXTS = TEXT.format("q") + TEXT.format("a")


@pytest.mark.parametrize(
    ("end", "options", "features", "content", "rows"),
    [
        ("csv", {"sep": ";"}, "", b"q;a\n007;NA\n5.50;1,5\n", [("007", "NA"), ("5.50", "1,5")]),
        ("csv", {"sep": "\t"}, "", b"q\ta\n007\tNA\n", [("007", "NA")]),
        ("csv", {"encoding": "latin-1"}, "", "q,a\né,1.10\n".encode("latin-1"), [("é", "1.10")]),
        ("csv", {"encoding": "utf-16"}, "", "q,a\né,1.10\n".encode("utf-16"), [("é", "1.10")]),
        ("csv", {"column_names": ["q", "a"]}, "", b"007,NA\n", [("007", "NA")]),
        ("csv", {"keep_default_na": False}, "", b"q,a\n007,NA\n", [("007", "NA")]),
        ("csv", {}, NAMED, b"q,a\n007,1\nNA,0\n", [("007", 1), ("NA", 0)]),
        ("csv", {}, NAMED, b"q,a\n007,pos\n", [("007", 1)]),
        ("jsonl", {}, TEXTS, b'{"q": "2024-05-05", "a": "1"}', [(DAY, "1")]),
        ("jsonl", {}, TAGGED, b'{"q": "1.0", "a": [1, 0]}', [("1.0", [1, 0])]),
    ],
)  # fmt: skip
def test_the_card_of_a_hub_data_set_changes_no_cell(
    end: str,
    options: dict[str, Any],
    features: str,
    content: bytes,
    rows: list[tuple[Any, ...]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    found = hub_rows(end, options, features, content, tmp_path, monkeypatch)
    assert found.dataset.to_list() == [dict(zip("qa", row, strict=True)) for row in rows]
    assert not caplog.records
    if features and not isinstance(rows[0][1], str):
        feature = found.dataset.features["a"]
        assert getattr(feature, "feature", feature).names in (["neg", "pos"], ["O", "B-X"])


def test_options_of_a_card_that_need_its_reader_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hub_rows("csv", {"skiprows": 1}, "", b"# note\nq,a\n1,2\n", tmp_path, monkeypatch)
    assert "read by their types, not as they stand" in caplog.text


def hub_rows(
    end: str,
    options: dict[str, Any],
    features: str,
    content: bytes,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Any:
    """The rows of a folder laid out as on the Hub, with a card."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", folder / "cache")
    files = [{"split": "train", "path": f"data/train.{end}"}]
    configs = json.dumps([{"config_name": "default", "data_files": files, **options}])
    info = "dataset_info:\n  features:\n  " + features.replace("\n-", "\n  -") if features else ""
    (folder / "hub" / "data").mkdir(parents=True)
    (folder / "hub" / "README.md").write_text(f"---\nconfigs: {configs}\n{info}---\n")
    (folder / "hub" / "data" / f"train.{end}").write_bytes(content)
    return _from_hub(Source(path=str(folder / "hub")), "train", folder)
