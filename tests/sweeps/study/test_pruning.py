"""A decision that was cut off by its driver's death comes out as it would have."""

from collections.abc import Callable
from typing import Any

import optuna
import pytest

from peft_jobs import Progress, State, TrialResult
from sweeps.study.study import SweepStudy

Open = Callable[..., SweepStudy]
LOSSES = [3.0, 2.0, 2.5, 1.5, 1.0, 1.0, 2.9]
"""At the first rung, by trial; equal ones, and ones that are promoted and ones that are not."""


def at_rung(study: SweepStudy, number: int, rung: int, loss: float) -> bool:
    metrics = {"validation/loss": loss}
    return study.report(
        number, Progress(step=rung, samples=rung, tokens=rung, metrics=metrics, rung=rung)
    )


def decisions(open_study: Open, cut: Callable[[SweepStudy, int, int, float], None] | None) -> Any:
    """What each trial was told at each of its rungs; `cut` dies in the middle of each decision."""
    said = []
    for loss in LOSSES:
        study = open_study(sampler="random")
        point = study.ask()
        assert point is not None
        result = TrialResult(state=State.COMPLETE, metrics={"validation/loss": loss / 3})
        for rung, value in zip(point.spec.evaluation.rungs, (loss, loss), strict=True):
            if cut is not None:
                cut(study, point.number, rung, value)
                study = open_study(sampler="random")
                again = study.ask()
                assert again is not None
                assert again.number == point.number
            go_on = at_rung(study, point.number, rung, value)
            said.append((point.number, rung, go_on))
            if not go_on:
                result = TrialResult(state=State.PRUNED, kind="weak")
                break
        study.tell(point.number, result)
    return said


def reported(study: SweepStudy, number: int, rung: int, loss: float) -> None:
    """As a driver that dies once Optuna has the value."""
    study._live[number].report(loss, rung)


def begun(study: SweepStudy, number: int, rung: int, loss: float) -> None:
    """As a driver that dies once Optuna has compared, before anybody has noted the answer."""
    trial = study._live[number]
    trial.report(loss, rung)
    trial.should_prune()


@pytest.mark.parametrize("cut", [reported, begun, at_rung])
def test_a_decision_that_was_cut_off_is_the_unbroken_one(open_study: Open, cut: Any) -> None:
    def named(name: str) -> Open:
        return lambda **sections: open_study(name=name, **sections)

    unbroken = decisions(named("unbroken"), None)
    assert {go_on for *_, go_on in unbroken} == {True, False}
    assert len({rung for _, rung, _ in unbroken}) == 2
    assert decisions(named("broken"), cut) == unbroken


def test_optuna_itself_would_forget_such_a_decision() -> None:
    """Why `pruning` is there: the second question is answered from the first's traces."""
    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=100, reduction_factor=3)
    study = optuna.create_study(pruner=pruner)
    for loss in (1.0, 2.0):
        trial = study.ask()
        trial.report(loss, 100)
        first = trial.should_prune()
    assert first
    assert not trial.should_prune()
