"""`init --data`: what the columns of a file tell goes into a valid sweep file, and is said."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import Result

from sweeps import load_sweep

Cli = Callable[..., Result]
Row = dict[str, Any]

TURNS = [("user", "What is two and two?"), ("assistant", "Four.")]
OPENAI = {"messages": [{"role": role, "content": text} for role, text in TURNS]}
SHAREGPT = {"conversations": [{"from": role, "value": text} for role, text in TURNS]}
CHAT = {"type": "causal_lm", "chat_template": "chatml"}
CLASSES = {"type": "sequence_classification"}
ANSWERS = {"text": ["b"], "answer_start": [2]}
KINDS: dict[str, tuple[Row, dict[str, Any], dict[str, Any]]] = {
    "openai": (OPENAI, {**CHAT, "messages": "messages"}, {}),
    "tools": (
        {**OPENAI, "tools": "[]"},
        {**CHAT, "messages": "messages", "tools": "tools"},
        {},
    ),
    "sharegpt": (SHAREGPT, {**CHAT, "messages": "conversations"}, {"format": "sharegpt"}),
    "alpaca": (
        {"instruction": "Add.", "input": "1 2", "output": "3"},
        {**CHAT, "messages": "messages"},
        {"format": "alpaca"},
    ),
    "pair": (
        {"id": "7", "question": "Why?", "answer": "So."},
        {"type": "causal_lm", "prompt": "{question}\n", "response": "{answer}"},
        {},
    ),
    "label": ({"text": "good", "label": 1}, {**CLASSES, "text": "{text}", "label": "label"}, {}),
    "labels": (
        {"text": "good", "labels": ["a", "b"]},
        {**CLASSES, "text": "{text}", "labels": "labels"},
        {},
    ),
    "two texts": (
        {"premise": "a", "hypothesis": "b", "label": "yes"},
        {**CLASSES, "text": "{premise}", "text_pair": "{hypothesis}", "label": "label"},
        {},
    ),
    "number": (
        {"sentence1": "a", "sentence2": "b", "score": 4.25},
        {
            **CLASSES,
            "text": "{sentence1}",
            "text_pair": "{sentence2}",
            "label": "score",
            "problem_type": "regression",
        },
        {},
    ),
    "tags": (
        {"tokens": ["An", "x"], "ner_tags": ["O", "B-X"]},
        {"type": "token_classification", "tokens": "tokens", "tags": "ner_tags"},
        {},
    ),
    "answers": (
        {"question": "?", "context": "a b", "answers": ANSWERS},
        {"type": "question_answering", "question": "{question}"},
        {},
    ),
    "text": ({"text": "Once upon a time."}, {"type": "causal_lm", "text": "{text}"}, {}),
}


def written(path: Path, rows: list[Row]) -> Path:
    """The rows in the form that the name asks for."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix in (".csv", ".tsv"):
        comma = "," if path.suffix == ".csv" else "\t"
        lines = [comma.join(rows[0]), *(comma.join(map(str, row.values())) for row in rows)]
        path.write_text("\n".join(lines) + "\n")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def drafted(cli: Cli, *words: str) -> tuple[dict[str, Any], str]:
    """The file that `init` writes, which is a valid one, and what it says."""
    result = cli("init", "--force", *words)
    assert result.exit_code == 0, result.output
    assert load_sweep(Path("sweep.yaml")).name == "sweep"
    return yaml.safe_load(Path("sweep.yaml").read_text()), result.stderr


@pytest.mark.parametrize(
    ("kind", "suffix"),
    [*((kind, "jsonl") for kind in KINDS), ("openai", "parquet"), ("answers", "json")],
)
def test_columns_and_form_are_taken_from_the_rows(
    cli: Cli, folder: Path, kind: str, suffix: str
) -> None:
    row, task, data = KINDS[kind]
    written(folder / f"rows.{suffix}", [row] * 3)
    tree, said = drafted(cli, "--data", f"rows.{suffix}", "--model", "demo")
    assert tree["task"] == task
    expected = {"train": f"rows.{suffix}", "validation": 0.1, "max_length": 512, **data}
    assert tree["data"] == expected
    assert tree["model"]["name_or_path"] == "demo"
    assert f"type {task['type']!r}" in said
    assert "holds a tenth" in said


@pytest.mark.parametrize(("kind", "suffix"), [("pair", "tsv"), ("number", "csv")])
def test_tables_of_text_are_read_alike(cli: Cli, folder: Path, kind: str, suffix: str) -> None:
    row, task, _ = KINDS[kind]
    written(folder / f"rows.{suffix}", [row] * 3)
    assert drafted(cli, "--data", f"rows.{suffix}")[0]["task"] == task


@pytest.mark.parametrize(("labels", "problem"), [([5, 4.25], "regression"), ([0.0, 1.0], None)])
def test_numbers_are_predicted_where_one_is_no_whole_number(
    cli: Cli, folder: Path, labels: list[float], problem: str | None
) -> None:
    written(folder / "rows.jsonl", [{"text": "good", "label": label} for label in labels])
    task = drafted(cli, "--data", "rows.jsonl")[0]["task"]
    assert (task["type"], task.get("problem_type")) == ("sequence_classification", problem)


def test_lines_of_text_are_trained_as_they_are(cli: Cli, folder: Path) -> None:
    (folder / "lines.txt").write_text("One.\nTwo.\n")
    assert drafted(cli, "--data", "lines.txt")[0]["task"] == KINDS["text"][1]


def test_the_task_that_is_wanted_is_taken(cli: Cli, folder: Path) -> None:
    written(folder / "rows.jsonl", [KINDS["pair"][0]])
    task = drafted(cli, "--data", "rows.jsonl", "--task", "seq2seq")[0]["task"]
    assert task == {"type": "seq2seq", "source": "{question}", "target": "{answer}"}


def test_other_splits_beside_the_file_and_a_preset_are_taken(cli: Cli, folder: Path) -> None:
    for split in ("train", "dev", "test"):
        written(folder / f"my_{split}.jsonl", [KINDS["pair"][0]])
    tree, said = drafted(cli, "--data", "my_train.jsonl", "--preset", "qlora")
    assert tree["data"]["validation"] == "my_dev.jsonl"
    assert tree["data"]["test"] == "my_test.jsonl"
    assert tree["space"] == {"preset": "qlora"}
    assert "the base is demo, as no --model is given" in said


def test_what_the_rows_do_not_tell_is_said(cli: Cli, folder: Path) -> None:
    written(folder / "rows.jsonl", [{"tokens": ["a"], "tags": [3]}])
    _, said = drafted(cli, "--data", "rows.jsonl", "--model", "some/base")
    assert "not known: the names of the tags" in said
    assert "task.tag_names" in (folder / "sweep.yaml").read_text()
    written(folder / "chat.jsonl", [OPENAI])
    tree, said = drafted(cli, "--data", "chat.jsonl", "--model", "some/base")
    assert "chat_template" not in tree["task"]
    assert "whether the base has a chat template is not known" in said


@pytest.mark.parametrize(
    ("row", "words", "told"),
    [
        ({"left": "a", "right": "b"}, (), "there are left, right;"),
        ({"text": "a"}, ("--task", "seq2seq"), "no columns for the task seq2seq"),
        ({"chosen": "a", "rejected": "b"}, (), "preferences, which are not trained on"),
        ({"tokens": ["a"], "tags": ["O", "O"]}, (), "there are tokens, tags;"),
        ({"prompt": [{"role": "user"}], "completion": "b"}, (), "there are prompt, completion;"),
        ({"text": "a"}, ("--preset", "qlroa"), "did you mean 'qlora'"),
        ({"text": "a"}, ("--task", "causal"), "did you mean 'causal_lm'"),
        ({"text": "a"}, ("--data", "a/hub-id"), "--data must be a file (.json, .jsonl,"),
        ({"text": "a"}, ("--data", "no.jsonl"), "no such file: no.jsonl"),
    ],
)
def test_where_nothing_fits_no_file_is_written(
    cli: Cli, folder: Path, row: Row, words: tuple[str, ...], told: str
) -> None:
    written(folder / "rows.jsonl", [row])
    result = cli("init", "--data", "rows.jsonl", *words)
    assert result.exit_code == 2
    assert told in result.stderr
    assert not (folder / "sweep.yaml").exists()


def test_the_base_and_the_data_take_what_was_guessed(cli: Cli, folder: Path) -> None:
    rows = [{"question": f"What is {n} and 1?", "answer": f"{n + 1}."} for n in range(40)]
    written(folder / "rows.jsonl", rows)
    drafted(cli, "--data", "rows.jsonl", "--model", "demo")
    result = cli("validate", "sweep.yaml", "pruner=none", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["train_rows"] == 36
