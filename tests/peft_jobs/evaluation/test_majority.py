"""The majority class, against scikit-learn's dummies and a count by hand."""

import json
from pathlib import Path
from typing import Any

import pytest

from peft_jobs.engines.solo.solo_engine import SoloEngine
from peft_jobs.host.job import Prepared
from peft_jobs.spec import TrialSpec


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def prepare(
    base: Path, task: dict[str, Any], train: list[Any], validation: list[Any], folder: Path
) -> Prepared:
    content = {
        "model": str(base),
        "task": task,
        "data": {
            "on_leak": "warn",
            "train": str(write(folder / "train.jsonl", train)),
            "validation": str(write(folder / "validation.jsonl", validation)),
            "max_length": 16,
        },
        "adapter": {"method": "lora", "target_modules": "attention-qv"},
    }
    return SoloEngine(str(folder / "cache")).prepare(TrialSpec.model_validate(content), [])


def rows(column: str, cells: list[Any]) -> list[dict[str, Any]]:
    return [{"text": f"the cat {number}", column: cell} for number, cell in enumerate(cells)]


def of_scikit_learn(train: list[Any], held: list[Any], *averages: str) -> dict[str, Any]:
    """Accuracy, and F1 in each average, of the answer that is most frequent in training."""
    from sklearn.dummy import DummyClassifier
    from sklearn.metrics import accuracy_score, f1_score

    dummy = DummyClassifier(strategy="most_frequent").fit([[0]] * len(train), train)
    predicted = dummy.predict([[0]] * len(held))
    found = {"validation/accuracy": pytest.approx(accuracy_score(held, predicted))}
    for average in averages:
        f1 = f1_score(held, predicted, average=average, zero_division=0)
        found[f"validation/{average}_f1"] = pytest.approx(f1)
    return found


TEXT = {"type": "sequence_classification", "text": "{text}"}


def test_the_majority_of_one_class_is_that_of_scikit_learn(
    tiny_bert_path: Path, tmp_path: Path
) -> None:
    train, held = list("aabbbbcca"), list("abbccb")
    found = prepare(
        tiny_bert_path, TEXT | {"label": "x"}, rows("x", train), rows("x", held), tmp_path
    )
    assert found.class_counts == {"a": 3, "b": 4, "c": 2}
    assert found.majority == of_scikit_learn(train, held, "macro")
    assert found.baseline == {}, "the head is new"


def test_the_majority_of_sets_is_by_class(tiny_bert_path: Path, tmp_path: Path) -> None:
    train = [[1, 0, 1], [1, 0, 0], [1, 1, 0], [0, 0, 0], [1, 0, 0]]
    held = [[1, 0, 0], [0, 1, 0], [1, 0, 1]]
    found = prepare(
        tiny_bert_path, TEXT | {"labels": "x"}, rows("x", train), rows("x", held), tmp_path
    )
    assert found.class_counts == {"0": 4, "1": 1, "2": 1}
    assert found.majority == of_scikit_learn(train, held, "macro", "micro")


def test_the_mean_of_numbers_is_that_of_scikit_learn(tiny_bert_path: Path, tmp_path: Path) -> None:
    from sklearn.dummy import DummyRegressor
    from sklearn.metrics import mean_squared_error

    train, held = [0.5, 1.0, 4.25, 2.0], [1.5, 3.0]
    task = TEXT | {"label": "x", "problem_type": "regression"}
    found = prepare(tiny_bert_path, task, rows("x", train), rows("x", held), tmp_path)
    dummy = DummyRegressor().fit([[0]] * len(train), train)
    mse = pytest.approx(mean_squared_error(held, dummy.predict([[0]] * len(held))))
    assert found.majority == {"validation/loss": mse, "validation/mse": mse}
    assert found.class_counts == {}


def test_the_majority_of_tags_finds_no_span(tiny_bert_path: Path, tmp_path: Path) -> None:
    train = [{"tokens": ["the", "cat", "sees"], "tags": ["O", "B-x", "O"]}] * 3
    held = [{"tokens": ["a", "dog"], "tags": ["O", "B-x"]}, {"tokens": ["a"], "tags": ["O"]}] * 2
    found = prepare(tiny_bert_path, {"type": "token_classification"}, train, held, tmp_path)
    assert found.class_counts == {"B-x": 3, "O": 6}
    assert found.majority == {
        "validation/accuracy": pytest.approx(2 / 3),
        "validation/macro_f1": pytest.approx((0.8 + 0.0) / 2),
        **dict.fromkeys(("validation/precision", "validation/recall", "validation/f1"), 0.0),
    }


def test_other_tasks_have_no_majority(tiny_llama_path: Path, tmp_path: Path) -> None:
    task = {"type": "causal_lm", "response": "{text}"}
    found = prepare(tiny_llama_path, task, rows("x", [1, 2]), rows("x", [1, 2]), tmp_path)
    assert found.majority == {}
    assert found.class_counts == {}
    assert "validation/loss" in found.baseline
