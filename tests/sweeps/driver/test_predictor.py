"""Points are predicted by a process of its own, as they would be in this one."""

import logging
from collections.abc import Callable

import pytest

from peft_jobs.host.gpus import GPUS, cpu_of
from peft_jobs.host.job import Prepared
from peft_jobs.host.prediction import Lengths
from peft_jobs.prediction.predicted_trials import PredictedTrials
from sweeps import SweepSpec
from sweeps.driver.predictor import Predictor, predictions
from sweeps.study.study import SweepStudy

Sweep = Callable[..., SweepSpec]
LENGTHS = Lengths(tokens=48, supervised=20, mean_tokens=30.0)


def test_a_process_predicts_as_this_one_would_until_it_ends(
    sweep: Sweep, caplog: pytest.LogCaptureFixture
) -> None:
    spec = sweep().trial
    trials = [spec.with_params({"adapter.r": r}) for r in (2, 3, 8)]
    expected = PredictedTrials(GPUS["L4"], LENGTHS, trials)
    predictor = Predictor(spec, GPUS["L4"], LENGTHS, trials)
    try:
        assert [predictor.of(trial) for trial in trials] == [expected.of(t) for t in trials]
        other = spec.with_params({"data.max_length": 32})
        with caplog.at_level(logging.WARNING):
            assert predictor.of(other) is None
    finally:
        predictor.close()
    assert predictor.of(trials[0]) is None
    told = [record.message for record in caplog.records if "cannot be predicted" in record.message]
    assert len(told) == 1, "it is said once"
    assert "other data are not predicted" in told[0]


@pytest.mark.parametrize(
    ("device", "engine", "constraints", "expected"),
    [
        (cpu_of(2**34, 2), "packed", {}, False),
        (cpu_of(2**34, 2), "packed", {"minutes": 5}, False),
        (cpu_of(2**34, 2), "packed", {"trainable_parameters": 5}, True),
        (GPUS["L4"], "solo", {}, True),
        (GPUS["L4"], "simulated", {}, False),
        (None, "solo", {}, False),
    ],
)
def test_points_are_predicted_where_something_follows_from_it(
    open_study: Callable[..., SweepStudy],
    device: object,
    engine: str,
    constraints: dict[str, float],
    expected: bool,
) -> None:
    study = open_study(resources={"engine": engine}, constraints=constraints)
    prepared = Prepared.model_validate({"train_rows": 9, "device": device, "lengths": LENGTHS})
    assert not study.is_slow
    with predictions(study, prepared):
        assert study.is_slow is expected
