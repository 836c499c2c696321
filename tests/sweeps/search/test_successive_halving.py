"""Who is compared with whom by successive halving, and from when on."""

from collections.abc import Callable
from typing import Any

import optuna
import pytest

from peft_jobs import Progress
from sweeps.search.pruners import PrunerSpec, build
from sweeps.search.successive_halving import STARTUP_TRIALS
from sweeps.study.study import SweepStudy

METHODS = {"adapter.method": {"choices": ["lora", "loha"]}}


def study_of(**arguments: Any) -> optuna.Study:
    pruner = build(PrunerSpec(type="successive_halving", **arguments), 900, (100, 300))
    return optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0), pruner=pruner)


def goes_on(study: optuna.Study, value: float, method: str | None = None, rung: int = 100) -> bool:
    if method is not None:
        study.enqueue_trial({"adapter.method": method})
    trial = study.ask()
    if method is not None:
        trial.suggest_categorical("adapter.method", ["lora", "loha"])
    trial.report(value, rung)
    return not trial.should_prune()


def test_none_is_stopped_before_so_many_have_passed_a_rung() -> None:
    study = study_of()
    found = [goes_on(study, float(value)) for value in range(8)]
    assert found == [True] * (STARTUP_TRIALS - 1) + [False] * (9 - STARTUP_TRIALS)
    assert goes_on(study, -1.0)
    at_once = study_of(n_startup_trials=0)
    assert [goes_on(at_once, float(value)) for value in range(3)] == [True, False, False]


def test_the_part_that_goes_on_is_rounded_up() -> None:
    """Of five the best two, of seven the best three; Optuna's own takes one, and two."""
    study = study_of()
    assert [goes_on(study, value) for value in (1.0, 3.0, 4.0, 5.0)] == [True] * 4
    assert goes_on(study, 2.0), "the second of five"
    assert not goes_on(study, 2.5), "the third of six"
    assert goes_on(study, 2.25), "the third of seven"


def test_each_rung_waits_for_its_own_trials() -> None:
    study = study_of(n_startup_trials=3)
    assert [goes_on(study, value) for value in (3.0, 2.0, 1.0)] == [True] * 3
    later = study.ask()
    later.report(0.5, 100)
    assert not later.should_prune()
    later.report(9.0, 300)
    assert not later.should_prune(), "it is the first at 300"


def test_trials_are_compared_within_their_method() -> None:
    study = study_of(n_startup_trials=2)
    assert [goes_on(study, value, "lora") for value in (1.0, 1.1, 0.9)] == [True, False, True]
    slow = [goes_on(study, value, "loha") for value in (5.0, 4.0, 6.0)]
    assert slow == [True, True, False]
    assert goes_on(study, 9.0), "and one without a method with neither"


def test_the_decisions_of_a_driver_are_those_of_the_pruner_alone(
    open_study: Callable[..., SweepStudy],
) -> None:
    """A driver keeps each rung's values in order; without, they are collected anew."""
    space = {
        "parameters": {
            **METHODS,
            "adapter.r": {"choices": [2, 4, 8]},
            "training.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
        }
    }
    halving = {"type": "successive_halving", "n_startup_trials": 3}
    budget = {"n_trials": 40}
    study = open_study(space=space, pruner=halving, sampler="random", budget=budget)
    plain = study_of(n_startup_trials=3)
    said = []
    for number in range(40):
        point = study.ask()
        assert point is not None
        value = float(number * 7 % 11)
        metrics = {"validation/loss": value}
        progress = Progress(step=1, samples=100, tokens=1, metrics=metrics, rung=100)
        method = str(point.params["adapter.method"])
        said.append(study.report(point.number, progress))
        assert said[-1] == goes_on(plain, value, method)
    assert 8 < sum(said) < 32


@pytest.mark.parametrize("count", [-1, "many"])
def test_a_number_that_is_none_is_refused(count: Any) -> None:
    from sweeps.search.pruners import check_pruner

    with pytest.raises(ValueError, match="n_startup_trials"):
        check_pruner(PrunerSpec(type="successive_halving", n_startup_trials=count))
