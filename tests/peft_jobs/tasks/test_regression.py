"""Numbers that are predicted: the loss of transformers, the correlations of scipy, a real trial."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from peft_jobs.spec import SequenceClassificationSpec, TrialSpec
from peft_jobs.tasks import TASKS
from peft_jobs.tasks.regression import NumberScore, number_losses, number_metrics

TASK = TASKS["sequence_classification"]
WORDS = ("red", "green", "cat", "dog")
FIELDS = {"text": "{text}", "label": "score", "problem_type": "regression"}
SPEC = SequenceClassificationSpec.model_validate({"type": "sequence_classification", **FIELDS})


def rows(num_rows: int) -> list[dict[str, Any]]:
    """The number is told by the words of the text."""
    found = []
    for number in range(num_rows):
        held = [place for place in range(4) if number >> place & 1]
        text = f"the {' '.join(WORDS[place] for place in held)} bird"
        found.append({"text": text, "score": sum(held) / 4 - 0.5})
    return found


def scores(outputs: list[float], targets: list[float]) -> list[Any]:
    pairs = zip(outputs, targets, strict=True)
    return [NumberScore((o - t) ** 2, 1, output=o, target=t) for o, t in pairs]


def test_the_loss_is_that_of_transformers(tiny_bert_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(
        tiny_bert_path, num_labels=1, problem_type="regression"
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert_path)
    encoder = TASK.encoder(tokenizer, SPEC, 32, ())
    examples: list[Any] = [encoder(row | {"score": str(row["score"])}) for row in rows(9)]
    batch = TASK.collate(examples, pad_token_id=5)
    assert batch["labels"].tolist() == [row["score"] for row in rows(9)]
    theirs = model(**batch)
    ours = TASK.losses(model, batch)
    assert ours.shape == (9,)
    assert (ours.sum() / TASK.count(batch)).item() == pytest.approx(theirs.loss.item(), rel=1e-5)
    found = TASK.metrics(TASK.scores(model, batch))
    assert found["loss"] == found["mse"] == pytest.approx(theirs.loss.item(), rel=1e-5)
    assert tuple(f"validation/{name}" for name in found) == SPEC.metrics


def test_the_metrics_are_those_of_scipy_and_scikit_learn() -> None:
    from scipy.stats import pearsonr, spearmanr
    from sklearn.metrics import mean_squared_error

    source = random.Random(0)
    targets = [float(source.randint(0, 6)) for _ in range(200)]  # many are equal
    outputs = [round(target + source.gauss(0, 2), 1) for target in targets]
    assert number_metrics(scores(outputs, targets)) == {
        "loss": pytest.approx(mean_squared_error(targets, outputs)),
        "mse": pytest.approx(mean_squared_error(targets, outputs)),
        "pearson": pytest.approx(pearsonr(outputs, targets).statistic),
        "spearman": pytest.approx(spearmanr(outputs, targets).statistic),
    }


def test_a_constant_has_no_correlation_and_no_nan() -> None:
    found = number_metrics(scores([1.0, 1.0], [0.0, 3.0]))
    assert found == {"loss": 2.5, "mse": 2.5, "pearson": 0.0, "spearman": 0.0}
    assert number_metrics(scores([1.0], [1.0]))["pearson"] == 0.0


def test_a_head_of_several_outputs_predicts_no_number() -> None:
    with pytest.raises(ValueError, match="one output"):
        number_losses(torch.zeros(3, 2), torch.zeros(3))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"labels": ["a", "b"], "problem_type": "regression"}, "regression needs `label`"),
        ({"label": "a", "problem_type": "multi_label_classification"}, "needs `labels`"),
        ({"labels": "a", "problem_type": "single_label_classification"}, "needs `label`"),
        ({"label": "a", "label_names": ["b", "c"], "problem_type": "regression"}, "label_names"),
        ({"label": "a", "label_names": ["b", "b"]}, "at least two classes, each once"),
        ({"label": "a", "multi_hot": True}, "multi_hot is of the lists in a column"),
    ],
)
def test_a_spec_that_contradicts_itself_is_refused(fields: dict[str, Any], message: str) -> None:
    content = {"type": "sequence_classification", "text": "{text}", **fields}
    with pytest.raises(ValidationError, match=message):
        SequenceClassificationSpec.model_validate(content)


def test_a_trial_learns_numbers(tiny_bert_path: Path, listen: Any, tmp_path: Path) -> None:
    from peft_jobs.engines.solo.adapter_export import merge_adapter, score_adapter
    from peft_jobs.engines.solo.solo_engine import SoloEngine

    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(80)), encoding="utf-8")
    spec = TrialSpec.model_validate(
        {
            "model": str(tiny_bert_path),
            "task": {"type": "sequence_classification", **FIELDS},
            "data": {"train": str(path), "validation": 0.25, "max_length": 32},
            "training": {"learning_rate": 1e-2, "max_samples": 480, "logging_steps": 20},
            "evaluation": {"rungs": [16]},
        }
    )
    engine = SoloEngine(str(tmp_path / "cache"))
    driver = listen(engine, tmp_path)
    result = driver.run(spec)
    assert result.state == "COMPLETE", result.error
    first = next(report for report in driver.reports if report.rung == 16)
    assert result.metrics["validation/mse"] < first.metrics["validation/mse"]
    assert result.metrics["validation/pearson"] > 0.9
    assert set(spec.task.metrics) <= set(result.metrics)
    assert engine.base is not None
    assert engine.base.model.config.problem_type == "regression"
    assert engine.base.model.config.num_labels == 1
    adapter = tmp_path / "attempts" / "1" / result.adapter
    again, _ = score_adapter(spec.to_json(), adapter, tmp_path / "cache", test=False)
    assert again == pytest.approx({name: result.metrics[name] for name in again}, rel=1e-4)
    merged = merge_adapter(spec.to_json(), adapter, tmp_path / "merged", tmp_path / "cache")
    assert merged == pytest.approx(again, rel=1e-4)
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    texts = [row["text"] for row in rows(16)]
    batch = tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        outputs = plain(**batch).logits[:, 0]
    wanted = torch.tensor([row["score"] for row in rows(16)])
    assert (outputs - wanted).square().mean().item() < 0.2
