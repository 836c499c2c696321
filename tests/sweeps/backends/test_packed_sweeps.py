"""A sweep whose trials share steps has the records of one whose trials are trained alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas
import pytest

from peft_jobs import SpecError
from sweeps import SweepSpec
from sweeps.results.recorded_sweep import open_sweep
from sweeps.run import launch

Sweep = Callable[..., SweepSpec]
SMALL = {"n_trials": 5, "max_samples": 32}
TRAINING = {"per_device_train_batch_size": 4, "warmup_steps": 0.1}


def trials(spec: SweepSpec) -> list[tuple[dict[str, Any], float, dict[int, float]]]:
    found = open_sweep(Path(spec.storage), spec.name).study.launched()
    assert all(t.state.name == "COMPLETE" for t in found)
    return [(t.user_attrs["params"], t.value or 0.0, t.intermediate_values) for t in found]


def test_packed_and_alone_are_the_same_sweep(sweep: Sweep) -> None:
    common: dict[str, Any] = {
        "data": {"validation_subset": 16},
        "budget": SMALL,
        "training": TRAINING,
        "sampler": "random",
        "pruner": "none",
    }
    alone = sweep(name="alone", resources={"engine": "solo"}, **common)
    packed = sweep(name="packed", resources={"engine": "packed", "slots_per_gpu": 3}, **common)
    assert launch(alone).status == launch(packed).status == "complete"
    for trial, same in zip(trials(alone), trials(packed), strict=True):
        assert trial[0] == same[0]
        assert trial[1] == pytest.approx(same[1], abs=1e-5)
        assert trial[2] == pytest.approx(same[2], abs=1e-5)
    sweeps = [open_sweep(Path(spec.storage), spec.name) for spec in (alone, packed)]
    for number, found in enumerate(trials(alone)):
        one, other = (sweep.rows(number) for sweep in sweeps)
        pandas.testing.assert_frame_equal(one, other, atol=1e-4)
        assert one["loss_sum"].sum() / one["count"].sum() == pytest.approx(found[1], rel=1e-12)
    with pytest.raises(SpecError, match="no scores by row of a trial 9 in 'packed'"):
        sweeps[1].rows(9)
    results = [
        t.user_attrs["result"] for t in open_sweep(Path(packed.storage), "packed").study.trials()
    ]
    assert {result["provenance"]["engine"] for result in results} == {"packed"}
    assert not list(Path(packed.storage).rglob("checkpoints"))
