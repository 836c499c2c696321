"""The error of predictions, by hand, from the records of trials."""

import json
from pathlib import Path
from typing import Any

import pytest

from peft_jobs import State, TrialResult
from peft_jobs.host.gpus import find_gpu
from sweeps.planning.learned import learned
from sweeps.results.prediction_error import prediction_errors

GPU = "NVIDIA L40S"


def result(seconds: float, peak: int | None, **given: Any) -> TrialResult:
    """Of 100 samples, predicted to take 0.5 s each and 1000 bytes."""
    told = {"seconds_per_sample": 0.5, "memory/peak_allocated_bytes": 1000.0}
    fields: dict[str, Any] = {
        "state": State.COMPLETE,
        "samples": 100,
        "seconds": {"train": seconds, "load": 500.0},
        "memory": {} if peak is None else {"peak_allocated_bytes": peak},
        "predicted": told,
        "provenance": {"device": GPU},
    }
    return TrialResult(**{**fields, **given})


def test_ratios_are_of_what_was_measured_to_what_was_predicted() -> None:
    [found] = prediction_errors([result(100, 1020), result(60, 980), result(125, 1010)])
    assert found.device == GPU
    assert found.trials == 3
    assert found.memory == (0.98, 1.01, 1.02)
    assert found.seconds == (1.2, 2.0, 2.5)
    assert found.efficiency == 0.5
    assert found.spread == pytest.approx(2.0 / 1.2)
    assert found.sentence() == (
        "3 trials on NVIDIA L40S: memory was 1.01 times the prediction (0.98 to 1.02), training "
        "took 2.00 times as long (1.20 to 2.50)"
    )


def test_trials_that_shared_a_device_or_did_not_end_tell_nothing() -> None:
    packed = {"device": GPU, "engine": "packed"}
    shared = {"peak_allocated_bytes": 500, "pack_peak_allocated_bytes": 900}
    alone = {"peak_allocated_bytes": 900, "pack_peak_allocated_bytes": 900}
    assert prediction_errors([result(100, 1, provenance=packed, memory=shared)]) == []
    assert prediction_errors([result(100, 1, state=State.PRUNED, kind="weak")]) == []
    assert prediction_errors([result(100, 1, predicted={})]) == []
    [found] = prediction_errors([result(100, 1, provenance=packed, memory=alone)])
    assert found.memory == (0.9, 0.9, 0.9)


def test_a_cpu_has_no_error_of_memory_and_devices_are_kept_apart() -> None:
    on_cpu = [result(50, None, provenance={"device": "cpu"}) for _ in range(2)]
    found = prediction_errors([result(100, 1000), *on_cpu])
    assert [(error.device, error.trials) for error in found] == [("cpu", 2), (GPU, 1)]
    assert found[0].memory is None
    assert "memory" not in found[0].sentence()


def test_a_plan_learns_from_the_trials_of_its_storage_on_such_a_gpu(tmp_path: Path) -> None:
    for number, seconds in enumerate((80.0, 100.0)):
        folder = tmp_path / "old" / "trials" / f"{number:04d}"
        folder.mkdir(parents=True)
        text = json.dumps(result(seconds, 1000).model_dump(mode="json"))
        (folder / "result.json").write_text(text, encoding="utf-8")
    (tmp_path / "old" / "trials" / "0001" / "result.json.part").write_text("{", encoding="utf-8")
    assert learned(tmp_path, find_gpu("L40S")) is None, "no sweep without a record"
    (tmp_path / "old" / "sweep.json").write_text("{}", encoding="utf-8")
    found = learned(tmp_path, find_gpu("L40S"))
    assert found is not None
    assert found.efficiency == pytest.approx(1 / 1.8)
    assert learned(tmp_path, find_gpu("A10")) is None
