"""A final training as a sweep: what it keeps of the sweep before, and what it drops."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peft_jobs import SpecError
from sweeps import SweepFileError, SweepSpec
from sweeps.spec.final import epochs_of_search, final_sweep
from sweeps.spec.identity import identity
from sweeps.spec.plan import max_samples, resolve, trials_at_once
from tests.sweeps.conftest import PREPARED

Sweep = Callable[..., SweepSpec]
PARAMS = {"adapter.r": 16, "adapter.lora_alpha": 32, "training.learning_rate": 1e-3, "seed": 9}


def final(spec: SweepSpec, seeds: list[int], **given: Any) -> SweepSpec:
    return final_sweep(resolve(spec, PREPARED), 7, PARAMS, seeds, **{"epochs": 2.0, **given})


def test_one_configuration_runs_to_its_end_on_all_rows_under_each_seed(sweep: Sweep) -> None:
    searched = sweep(
        data={"subset": 0.1, "validation_subset": 8},
        constraints={"minutes": 1},
        budget={"timeout": 60, "rungs": [100, 300]},
        confirm=True,
    )
    found = final(searched, [3, 5, 8])
    assert found.name == "simulated-final-0007"
    assert found.final_of is not None
    assert (found.final_of.sweep, found.final_of.trial) == ("simulated", 7)
    assert (found.trial.data.subset, found.trial.data.validation_subset) == (None, None)
    assert (found.constraints, found.confirm, found.budget.timeout) == ({}, None, None)
    assert found.pruner.type == "none"
    assert trials_at_once(found, 0) == 3
    resolved = resolve(found, PREPARED)
    assert resolved.trial.evaluation.rungs == ()
    assert resolved.trial.training.max_samples == max_samples(found, 1000) == 2000
    points = [*found.space.points_to_evaluate]
    trials = [found.trial.with_params(point) for point in points]
    assert [trial.seed for trial in trials] == [3, 5, 8]
    for trial in trials:
        assert (trial.adapter.r, trial.adapter.lora_alpha) == (16, 32)
        assert trial.training.learning_rate == 1e-3
        assert trial.quantization == searched.trial.quantization


def test_the_same_number_of_passes_as_the_search_made_and_one_at_least(sweep: Sweep) -> None:
    for samples, epochs in ((900, 1.0), (2500, 2.5)):
        spec = resolve(sweep(budget={"max_samples": samples}), PREPARED)
        assert epochs_of_search(spec, PREPARED.train_rows) == epochs


def test_more_seeds_are_the_same_final_training_and_other_epochs_are_not(sweep: Sweep) -> None:
    spec = sweep()
    first = identity(final(spec, [3, 5]))
    assert first == identity(final(spec, [3, 5, 8]))
    assert first != identity(final(spec, [3, 5], epochs=1.0))
    assert "final_of.trial" in first
    assert not any(name.startswith("final_of") for name in identity(spec))


def test_validation_rows_that_are_trained_on_give_way_to_the_test_rows(sweep: Sweep) -> None:
    data = final(sweep(data={"test": "demo"}), [3], with_validation=True).trial.data
    assert data.train_also is not None
    assert isinstance(data.validation, type(data.train))
    splits = (data.train.split, data.train_also.split, data.validation.split)
    assert splits == (None, "validation", "test")
    assert data.test is None


def test_a_held_out_share_is_held_out_no_more(sweep: Sweep) -> None:
    given = {"validation": 0.2, "test": "demo", "group_by": "record"}
    data = final(sweep(data=given), [3], with_validation=True).trial.data
    assert data.train_also is None
    assert data.group_by is None
    assert isinstance(data.validation, type(data.train))


def test_without_test_rows_nothing_would_be_left_to_measure_by(sweep: Sweep) -> None:
    with pytest.raises(SpecError, match=r"--with-validation: the sweep has no data\.test"):
        final(sweep(), [3], with_validation=True)


def test_a_second_source_of_rows_is_in_the_way(sweep: Sweep, tmp_path: Path) -> None:
    more = {"train_also": {"path": "demo", "split": "train"}, "test": "demo"}
    with pytest.raises(SpecError, match=r"data\.train_also is taken already"):
        final(sweep(data=more), [3], with_validation=True)


def test_overrides_come_last_and_are_checked(sweep: Sweep) -> None:
    found = final(sweep(), [3], overrides=["training.weight_decay=0.1"])
    assert found.trial.training.weight_decay == 0.1
    with pytest.raises(SweepFileError, match=r"simulated-final-0007[^\n]*\n +training\.lr"):
        final(sweep(), [3], overrides=["training.lr=0.1"])
