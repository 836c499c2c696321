"""A person's own metrics: called as documented, checked before launch, their bugs kept apart."""

import math
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from peft_jobs.engines.solo.solo_engine import SoloEngine
from peft_jobs.errors import SpecError
from peft_jobs.training.counts import Counts

METRICS = """
import torch

def mean_length(model, tokenizer, rows):
    return {"mean_length": sum(map(len, rows["input_ids"])) / len(rows), "rows": len(rows)}

def surroundings(model, tokenizer, rows):
    logits = model(input_ids=torch.tensor([rows[0]["input_ids"]], device=model.device)).logits
    text = tokenizer.decode(rows[0]["input_ids"])
    return {
        "training": model.training,
        "gradients": logits.requires_grad,
        "autocast": torch.is_autocast_enabled(model.device.type),
        "text": len(text),
    }

def broken(model, tokenizer, rows):
    return {"share": 1 / sum(label > 10**6 for label in rows[0]["labels"])}

def loss(model, tokenizer, rows):
    return {"loss": 0.0}

def no_number(model, tokenizer, rows):
    return {"undefined": float("nan")}

def nothing(model, tokenizer, rows):
    pass

NUMBER = 3
"""


@pytest.fixture(autouse=True)
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_metrics.py").write_text(METRICS)
    (tmp_path / "unimportable.py").write_text("raise OSError('the licence server is away')\n")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> SoloEngine:
    return SoloEngine(str(tmp_path_factory.mktemp("cache")), threads=1)


@pytest.fixture
def make(trial: Any, rows_path: Path) -> Any:
    def build(*metrics: str, **params: Any) -> Any:
        return trial(
            {
                "adapter.r": 4,
                "task": {"type": "causal_lm", "prompt": "{q}", "response": "{a}"},
                "data.train": {"path": str(rows_path)},
                "data.validation": 0.2,
                "training.max_steps": 4,
                "evaluation.rungs": [16],
                "evaluation.metrics": list(metrics),
                **params,
            }
        )

    return build


def test_own_metrics_are_measured_at_every_evaluation(
    engine: SoloEngine, listen: Any, make: Any, tmp_path: Path
) -> None:
    spec = make("own_metrics:mean_length", "own_metrics:surroundings", **{"training.bf16": True})
    one, plain = listen(engine, tmp_path / "one"), listen(engine, tmp_path / "plain")
    result = one.run(spec)
    assert result.error is None, result.traceback
    rows = engine.check(spec)[1].validation
    lengths = [len(row) for row in rows["input_ids"]]
    expected = {
        "validation/mean_length": sum(lengths) / len(lengths),
        "validation/rows": 16.0,
        "validation/training": 0.0,
        "validation/gradients": 0.0,
        "validation/autocast": 1.0,
    }
    rung = next(report for report in one.reports if report.rung == 16)
    for metrics in (rung.metrics, result.metrics):
        assert {name: metrics[name] for name in expected} == expected
        assert metrics["validation/text"] > lengths[0]
    baseline = engine.prepare(spec, []).baseline
    assert baseline["validation/rows"] == 16.0
    without = plain.run(make(**{"training.bf16": True})).metrics
    assert {name: result.metrics[name] for name in without} == without, "training is the same"


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("no_such_module:f", "'no_such_module:f' cannot be imported: No module named"),
        ("own_metrics:absent", "has no attribute 'absent'"),
        ("own_metrics:NUMBER", "'own_metrics:NUMBER' is no function, but 3"),
        ("unimportable:f", "'unimportable:f' cannot be imported: the licence server is away"),
    ],
)
def test_a_metric_that_cannot_be_called_is_refused_before_launch(
    engine: SoloEngine, make: Any, reference: str, expected: str
) -> None:
    with pytest.raises(SpecError, match=r"evaluation\.metrics") as caught:
        engine.prepare(make(), [make(), make(reference)])
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("reference", ["f", "module:", ":f", "a b:f", "module:f()", "../x:f"])
def test_a_metric_is_written_module_and_function(make: Any, reference: str) -> None:
    with pytest.raises(ValidationError, match="must be written module:function"):
        make(reference)


@pytest.mark.parametrize(
    ("name", "kind", "error"),
    [
        ("broken", "bug", "division by zero"),
        ("loss", "bug", "'loss' is the name of a metric of the task"),
        ("nothing", "bug", "own_metrics:nothing must return a dictionary, got None"),
    ],
)
def test_a_metric_that_fails_ends_its_trial_alone(
    engine: SoloEngine, listen: Any, make: Any, tmp_path: Path, name: str, kind: str, error: str
) -> None:
    one = listen(engine, tmp_path / "one")
    result = one.run(make(f"own_metrics:{name}"))
    assert result.kind == kind
    assert result.state == "FAIL"
    assert error in result.error
    assert "Traceback" in result.traceback
    if name == "broken":
        assert 'own_metrics.py", line' in result.traceback
    assert result.step == 2
    assert listen(engine, tmp_path / "next").run(make()).error is None


def test_a_metric_may_be_undefined_and_is_left_out_by_name(
    engine: SoloEngine, listen: Any, make: Any, tmp_path: Path
) -> None:
    prepared = engine.prepare(make("own_metrics:no_number"), [])
    assert prepared.not_finite == ("validation/undefined",)
    assert "validation/loss" in prepared.baseline
    result = listen(engine, tmp_path).run(make("own_metrics:no_number"))
    assert result.state == "COMPLETE"
    assert result.not_finite == ("validation/undefined",)
    assert math.isfinite(result.metrics["validation/loss"])
    assert "validation/undefined" not in result.metrics


def test_what_is_undefined_now_does_not_keep_an_earlier_value() -> None:
    counts = Counts(metrics={"train/loss": 2.0, "test/loss": 3.0})
    counts.evaluated({"validation/loss": 1.0, "validation/f1": 0.5}, "validation")
    counts.evaluated({"validation/loss": 0.9, "validation/f1": math.nan}, "validation")
    assert counts.metrics == {"train/loss": 2.0, "test/loss": 3.0, "validation/loss": 0.9}
    assert counts.not_finite == ("validation/f1",)
    counts.evaluated({"validation/loss": 0.8}, "validation")
    assert counts.not_finite == ()


def test_metrics_come_in_one_order_without_repeats(make: Any) -> None:
    spec = make("own_metrics:loss", "own_metrics:broken", "own_metrics:loss")
    assert spec.evaluation.metrics == ("own_metrics:broken", "own_metrics:loss")
