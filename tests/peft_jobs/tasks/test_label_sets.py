"""Several classes at once: a list in a column, or a column for each."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from peft_jobs.data.tokenized import load_data
from peft_jobs.errors import DataError
from peft_jobs.spec import SequenceClassificationSpec, TrialSpec
from peft_jobs.tasks import TASKS

TASK = TASKS["sequence_classification"]
WORDS = ("red", "green", "cat")


def spec_of(**fields: Any) -> SequenceClassificationSpec:
    return SequenceClassificationSpec(type="sequence_classification", text="{text}", **fields)


LISTED = spec_of(labels="labels")
COLUMNS = spec_of(labels=WORDS)


@pytest.fixture
def tokenizer(tiny_bert_path: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_bert_path)


def rows(num_rows: int) -> list[dict[str, Any]]:
    """Each word that a text holds is one of its classes."""
    found = []
    for number in range(num_rows):
        held = [word for place, word in enumerate(WORDS) if number >> place & 1]
        text = f"the {' '.join(held)} {number % 10}"
        flags = {word: word in held for word in WORDS}
        found.append({"text": text, "labels": held} | flags)
    return found


def write(path: Path, content: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    return path


def trial(train: Path, base: Path | str = "unused", **fields: Any) -> TrialSpec:
    return TrialSpec.model_validate(
        {
            "model": str(base),
            "task": {"type": "sequence_classification", "text": "{text}", **fields},
            "data": {"train": str(train), "validation": 0.25, "max_length": 32},
            "training": {"learning_rate": 1e-2, "max_samples": 480, "logging_steps": 20},
            "evaluation": {"rungs": [16]},
        }
    )


def test_lists_and_columns_give_the_same_examples(tokenizer: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", rows(40))
    listed = load_data(trial(path, labels="labels"), tokenizer, tmp_path)
    assert listed.classes == ("cat", "green", "red")
    columns = load_data(trial(path, labels=["cat", "green", "red"]), tokenizer, tmp_path)
    assert columns.classes == listed.classes
    assert columns.train["label"][:] == listed.train["label"][:]
    for tokens, label in zip(listed.train["input_ids"], listed.train["label"], strict=True):
        words = tokenizer.convert_ids_to_tokens(tokens)
        assert label == [int(name in words) for name in listed.classes]


def test_the_loss_is_that_of_transformers(tokenizer: Any, tiny_bert_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(
        tiny_bert_path, num_labels=3, problem_type="multi_label_classification"
    ).eval()
    encoder = TASK.encoder(tokenizer, LISTED, 32, WORDS)
    examples: list[Any] = [encoder(row) for row in rows(9)]
    batch = TASK.collate(examples, pad_token_id=5)
    theirs = model(**batch)
    ours = TASK.losses(model, batch)
    assert ours.shape == (9,)
    assert ours.mean().item() == pytest.approx(theirs.loss.item(), rel=1e-5)
    scores = TASK.scores(model, batch)
    predicted = (theirs.logits.sigmoid() >= 0.5).int()
    actual = batch["labels"].int()
    true = (predicted & actual).sum(0)
    each = (predicted + actual).sum(0)
    metrics = TASK.metrics(scores)
    assert metrics == {
        "loss": pytest.approx(theirs.loss.item(), rel=1e-5),
        "accuracy": pytest.approx((predicted == actual).all(1).float().mean().item()),
        "micro_f1": pytest.approx((2 * true.sum() / each.sum()).item()),
        "macro_f1": pytest.approx(
            torch.where(each > 0, 2 * true / each.clamp(min=1), 0.0).mean().item()
        ),
    }
    assert {f"validation/{name}" for name in metrics} == set(LISTED.metrics)
    assert "validation/micro_f1" not in spec_of(label="label").metrics


@pytest.mark.parametrize(
    ("spec", "row", "mistake"),
    [
        (LISTED, {"text": "a", "labels": None}, "column 'labels' must hold a list of labels"),
        (LISTED, {"text": " ", "labels": []}, "the text is empty"),
        (
            COLUMNS,
            {"text": "a", "red": 1, "green": True, "cat": 2},
            "column 'cat' must hold 0 or 1, or true or false",
        ),
    ],
)
def test_rows_without_a_set_of_labels_are_named(
    spec: Any, row: dict[str, Any], mistake: str
) -> None:
    found = TASK.mistake(row, spec)
    assert found is not None
    assert mistake in found
    assert TASK.mistake({"text": "a", "labels": [], **dict.fromkeys(WORDS, 0)}, spec) is None


def test_labels_that_the_training_rows_lack_are_named(tokenizer: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", rows(16))
    other = write(tmp_path / "other.jsonl", [*rows(4), {"text": "a", "labels": ["blue"]}])
    spec = trial(path, labels="labels").with_params({"data.validation": {"path": str(other)}})
    with pytest.raises(DataError, match=r"row 5: label 'blue' in column 'labels' is not among"):
        load_data(spec, tokenizer, tmp_path)
    nested = write(tmp_path / "nested.jsonl", [{"text": "a", "labels": [{"x": 1}]}] * 4)
    with pytest.raises(DataError, match=r"row 1: column 'labels' must hold names or numbers"):
        load_data(trial(nested, labels="labels"), tokenizer, tmp_path)


@pytest.mark.parametrize(
    "fields", [{}, {"label": "a", "labels": "b"}, {"labels": ["a"]}, {"labels": ["a", "a"]}]
)
def test_a_spec_says_one_class_or_several(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"give either `label`|at least two columns"):
        spec_of(**fields)


def test_a_trial_learns_sets_of_classes(tiny_bert_path: Path, listen: Any, tmp_path: Path) -> None:
    from peft_jobs.engines.solo.adapter_export import score_adapter
    from peft_jobs.engines.solo.solo_engine import SoloEngine

    spec = trial(write(tmp_path / "rows.jsonl", rows(80)), tiny_bert_path, labels=list(WORDS))
    engine = SoloEngine(str(tmp_path / "cache"))
    driver = listen(engine, tmp_path)
    result = driver.run(spec)
    assert result.state == "COMPLETE", result.error
    first = next(report for report in driver.reports if report.rung == 16)
    assert result.metrics["validation/loss"] < first.metrics["validation/loss"]
    assert set(spec.task.metrics) <= set(result.metrics)
    assert engine.base is not None
    assert engine.base.model.config.problem_type == "multi_label_classification"
    adapter = tmp_path / "attempts" / "1" / result.adapter
    again, _ = score_adapter(spec.to_json(), adapter, tmp_path / "cache", test=False)
    assert again == pytest.approx({name: result.metrics[name] for name in again}, rel=1e-5)
