"""Rungs by hand, and the pruner that is to meet them."""

import re
from collections.abc import Callable
from typing import Any

import optuna
import pytest

from peft_jobs import SpecError
from peft_jobs.host.job import Prepared
from sweeps import SweepSpec
from sweeps.search.pruners import build
from sweeps.spec.plan import geometric_rungs, resolve, trials_at_once, variants, with_slots

Sweep = Callable[..., SweepSpec]
PREPARED = Prepared(train_rows=1000)


@pytest.mark.parametrize(
    ("samples", "count", "factor", "rungs"),
    [
        (900, 2, 3, (100, 300)),
        (1000, 2, 3, (111, 333)),
        (1000, 3, 4, (15, 60, 240)),
        (1000, 0, 3, ()),
        (8, 2, 3, (2,)),
        (9, 2, 3, (1, 3)),
        (2, 5, 3, ()),
        (1, 1, 2, ()),
        (1000, 10**9, 10, (1, 10, 100)),
    ],
)
def test_rungs_are_geometric(samples: int, count: int, factor: int, rungs: tuple[int]) -> None:
    assert geometric_rungs(samples, count, factor) == rungs


def test_the_budget_becomes_samples_and_rungs_of_the_trial(sweep: Sweep) -> None:
    epochs = {"max_samples": None, "num_train_epochs": 1.5}
    steps = {"max_samples": None, "max_steps": 20}
    for budget, samples, rungs in (
        ({"max_samples": 900}, 900, (100, 300)),
        (epochs, 1500, (166, 498)),
        (steps, 160, (17, 51)),
        ({"rungs": [30, 500]}, 900, (30, 500)),
        ({"num_rungs": 0}, 900, ()),
    ):
        trial = resolve(sweep(budget=budget), PREPARED).trial
        assert trial.training.max_samples == samples
        assert trial.training.max_steps is None
        assert trial.evaluation.rungs == rungs


def test_rungs_follow_the_pruners_reduction_factor_also_under_patience(sweep: Sweep) -> None:
    halving = {"type": "successive_halving", "reduction_factor": 2}
    patient = {"type": "patient", "patience": 0, "wrapped_pruner": halving}
    for pruner in (halving, patient):
        assert resolve(sweep(pruner=pruner), PREPARED).trial.evaluation.rungs == (225, 450)


@pytest.mark.parametrize(
    ("training", "batches", "kept", "told"),
    [
        ({"warmup_steps": 0.1}, [8], (100, 300), None),  # 113 steps, 12 of warm-up: step 13
        ({"warmup_steps": 0.11}, [8], (300,), "at step 13 .* has 13 steps of warm-up; .* step 14"),
        ({"warmup_steps": 13}, [8], (300,), "batches of 8, which has 13 steps of warm-up"),
        ({}, [8, 64], (300,), "rung at 100 samples is at step 2 .* 64, which has hardly begun"),
        ({}, [8, 256], (), "rung at 300 samples is at step 2"),
    ],
)
def test_no_trial_is_compared_before_it_has_trained(
    sweep: Sweep,
    caplog: pytest.LogCaptureFixture,
    training: dict[str, Any],
    batches: list[int],
    kept: tuple[int, ...],
    told: str | None,
) -> None:
    parameters = {"training.per_device_train_batch_size": {"choices": batches}}
    given: dict[str, Any] = {"training": training, "space": {"parameters": parameters}}
    found = resolve(sweep(**given), PREPARED).trial.evaluation.rungs
    assert found == kept
    assert bool(told) == ("left out: the rung" in caplog.text)
    assert told is None or re.search(told, caplog.text)
    assert resolve(sweep(pruner="none", **given), PREPARED).trial.evaluation.rungs == (100, 300)
    if told is not None:
        with pytest.raises(SpecError, match=r"budget\.rungs: the rung at"):
            resolve(sweep(budget={"rungs": [100, 300]}, **given), PREPARED)


@pytest.mark.parametrize(
    ("n_trials", "pruner", "warned"),
    [
        (19, "median", True),
        (20, "median", False),
        (8, "none", False),
    ],
)
def test_few_trials_are_told_to_have_no_use_for_a_pruner(
    sweep: Sweep, caplog: pytest.LogCaptureFixture, n_trials: int, pruner: str, warned: bool
) -> None:
    resolve(sweep(budget={"n_trials": n_trials}, pruner=pruner), PREPARED)
    assert (f"{n_trials} trials are few for the pruner {pruner}" in caplog.text) == warned


def test_rungs_beyond_the_horizon_are_refused(sweep: Sweep) -> None:
    budget = {"max_samples": None, "num_train_epochs": 1, "rungs": [500, 1000]}
    with pytest.raises(SpecError, match="must lie below the 1000 samples of a trial"):
        resolve(sweep(budget=budget), PREPARED)


@pytest.mark.parametrize(("samples", "factor"), [(900, 3), (1000, 3), (1000, 2), (1777, 4)])
def test_successive_halving_decides_at_exactly_these_rungs(
    sweep: Sweep, samples: int, factor: int
) -> None:
    pruner = {
        "type": "successive_halving",
        "reduction_factor": factor,
        "n_startup_trials": 0,
    }
    budget = {"max_samples": samples, "num_rungs": 3}
    spec = resolve(sweep(pruner=pruner, budget=budget), PREPARED)
    rungs = spec.trial.evaluation.rungs
    assert len(rungs) == 3
    study = optuna.create_study(pruner=build(spec.pruner, samples, rungs))
    decided = set()
    trial = study.ask()
    records = 0
    for step in range(1, samples):  # alone and best so far, it is promoted at each rung
        trial.report(1 / step, step)
        assert not trial.should_prune()
        attributes = trial.storage.get_trial(trial._trial_id).system_attrs
        found = sum(name.startswith("completed_rung_") for name in attributes)
        if found > records:
            decided.add(step)
            records = found
    assert decided == {rung for rung in (*rungs, rungs[-1] * factor) if rung < samples}
    worse = study.ask()
    worse.report(2.0, rungs[0] - 1)
    assert not worse.should_prune()
    worse.report(2.0, rungs[0])
    assert worse.should_prune()


def test_variants_are_one_trial_per_base_task_data_and_targets(sweep: Sweep) -> None:
    chosen = variants(sweep())
    assert {trial.adapter.target_modules for trial in chosen} == {"attention-qv", "all-linear"}
    assert len(chosen) == 2
    parameters: dict[str, Any] = {
        "quantization.scheme": {"choices": ["nf4", "int8"]},
        "adapter.target_modules": {"choices": ["attention", "all-linear"]},
    }
    chosen = variants(sweep(space={"parameters": parameters}))
    assert len({(t.quantization.scheme, t.adapter.target_modules) for t in chosen}) == 4
    assert len(chosen) == 4


@pytest.mark.parametrize(
    ("sampler", "pruner", "n_trials", "ended", "at_once"),
    [
        ("tpe", "none", 40, 0, 10),
        ("tpe", "none", 40, 20, 5),
        ("random", "successive_halving", 40, 0, 10),
        ("random", "none", 40, 0, 40),
        ("qmc", "none", 40, 30, 10),
        ("gp", "median", 8, 0, 2),
        ("tpe", "none", 10, 0, 10),  # all of them drawn at random
        ("tpe", "none", 11, 0, 2),
        ("tpe", "successive_halving", 3, 0, 1),
        ("tpe", "none", 8, 8, 1),
    ],
)
def test_sampler_and_pruner_see_trials_before_the_next_ones_start(
    sweep: Sweep, sampler: str, pruner: str, n_trials: int, ended: int, at_once: int
) -> None:
    spec = sweep(sampler=sampler, pruner=pruner, budget={"n_trials": n_trials})
    assert trials_at_once(spec, ended) == at_once
    prepared = PREPARED.model_copy(update={"slots": 32})
    assert with_slots(spec, prepared, at_once).resources.slots == min(32, at_once)
    given = sweep(resources={"slots_per_gpu": 7}, sampler=sampler)
    assert with_slots(given, prepared, at_once).resources.slots == 7


def test_a_search_over_seeds_is_warned_of(sweep: Sweep, caplog: pytest.LogCaptureFixture) -> None:
    seed = {"seed": {"low": 0, "high": 9}}
    resolve(sweep(space={"parameters": seed}), PREPARED)
    assert "luckiest" not in caplog.text, "one configuration, repeated"
    resolve(sweep(space={"parameters": {"adapter.r": {"choices": [4, 8]}, **seed}}), PREPARED)
    assert "the luckiest will win" in caplog.text
