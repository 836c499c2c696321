"""A confirmation from end to end: repeats are trials that no sampler, pruner or budget sees."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from peft_jobs import SpecError
from sweeps import SweepSpec
from sweeps.confirmation.confirmed import confirmation_of
from sweeps.driver.driver import Driver
from sweeps.records.layout import SweepFolder
from sweeps.report.pictures import write_pictures
from sweeps.results.recorded_sweep import open_sweep
from sweeps.run import LaunchCallbacks, launch
from sweeps.spec.sweep import ConfirmSpec
from sweeps.study.reruns import REPEAT_OF, REPEAT_SEED, repeats

Sweep = Callable[..., SweepSpec]
FEW = ConfirmSpec(seeds=3, candidates=4, max_trials=12)


def named(spec: SweepSpec, **changed: Any) -> SweepSpec:
    return spec.model_copy(update=changed)


def test_a_sweep_ends_with_the_proof_of_its_winner(sweep: Sweep) -> None:
    spec = sweep(pruner="none", confirm=FEW.model_dump())
    outcome = launch(spec)
    assert outcome.status == "complete"
    board = outcome.leaderboard
    assert len(board.rows) == spec.budget.n_trials, "repeats are no rows"
    found = board.confirmation
    assert found is not None
    assert found.num_repeats <= 12
    best = board.best
    assert best is not None
    assert best.number in {row.number for row in found.rows}
    assert found.recommended in {row.number for row in found.tied}
    assert board.to_json()["confirmation"]["recommended"] == found.recommended
    study = open_sweep(spec.storage, spec.name).study
    for trial in repeats(study):
        original = study.trials()[trial.user_attrs[REPEAT_OF]]
        assert trial.params == original.params
        assert trial.user_attrs[REPEAT_SEED] != spec.seed
        assert trial.intermediate_values == {}, "no rung: nothing prunes it"
        assert trial.state == TrialState.COMPLETE
    seeds = {trial.user_attrs[REPEAT_SEED] for trial in repeats(study)}
    assert len(seeds) <= 3


def test_confirming_later_is_the_same_and_a_second_time_adds_nothing(sweep: Sweep) -> None:
    at_once, later = (
        sweep(name="a", pruner="none", confirm=FEW.model_dump()),
        sweep(name="b", pruner="none"),
    )
    first = launch(at_once).leaderboard.confirmation
    launch(later)
    second = launch(named(later, confirm=FEW), confirm_only=True).leaderboard.confirmation
    assert first is not None
    assert second is not None
    assert [(r.number, r.expected, r.behind) for r in first.rows] == [
        (r.number, r.expected, r.behind) for r in second.rows
    ]
    launch(named(later, confirm=FEW), confirm_only=True)
    study = open_sweep(later.storage, "b").study
    assert len(repeats(study)) == second.num_repeats


def test_repeats_are_in_no_picture_but_their_own(sweep: Sweep, tmp_path: Path) -> None:
    for name, confirm in (("a", FEW.model_dump()), ("b", None)):
        spec = sweep(name=name, pruner="none", confirm=confirm)
        launch(spec)
        found = open_sweep(spec.storage, name)
        assert bool(repeats(found.study)) is (name == "a")
        made = write_pictures(found.leaderboard(), found.study, found.verdict(), tmp_path / name)
        drawn = {"history.png", "rungs.png", "importances.png"}
        assert {path.name for path in made} == drawn | ({"confirmation.png"} if confirm else set())
    for picture in (tmp_path / "b").iterdir():
        assert (tmp_path / "a" / picture.name).read_bytes() == picture.read_bytes()


def test_an_interrupted_confirmation_goes_on(sweep: Sweep) -> None:
    spec = sweep(pruner="none")
    launch(spec)
    launch(named(spec, name="w"))  # another name: the same draws
    confirmed = named(spec, confirm=FEW)
    slow = sweep(
        pruner="none", resources={"engine_options": {"step_seconds": 0.02, "num_slots": 2}}
    )

    def on_change(driver: Driver) -> None:
        if len(repeats(driver.study)) >= 3:
            driver.request_stop()

    callbacks = LaunchCallbacks(on_change=on_change)
    cut = launch(named(slow, confirm=FEW), callbacks, confirm_only=True)
    assert cut.status == "interrupted"
    study = open_sweep(spec.storage, spec.name).study
    left = [trial for trial in repeats(study) if trial.state == TrialState.RUNNING]
    assert left
    outcome = launch(confirmed, confirm_only=True)
    assert outcome.status == "complete"
    study = open_sweep(spec.storage, spec.name).study
    pairs = [(t.user_attrs[REPEAT_OF], t.user_attrs[REPEAT_SEED]) for t in repeats(study)]
    assert len(set(pairs)) == len(pairs), "no repeat twice"
    folder = SweepFolder.of(spec)
    for trial in repeats(study):  # as any trial's
        assert folder.result(trial.number).is_file()
        own = json.loads(folder.trial_file(trial.number).read_text())
        assert (own["seed"], own["evaluation"]["rungs"]) == (trial.user_attrs[REPEAT_SEED], [])
    ended = repeats(study)[0].number
    folder.result(ended).unlink()
    launch(confirmed, confirm_only=True)
    assert folder.result(ended).is_file(), "a later driver writes what is missing"
    other = launch(named(confirmed, name="w"), confirm_only=True).leaderboard.confirmation
    assert outcome.leaderboard.confirmation is not None
    assert other is not None
    assert outcome.leaderboard.confirmation.rows == other.rows


def test_a_larger_budget_afterwards_draws_what_it_would_have_drawn(sweep: Sweep) -> None:
    """Repeats are no part of n_trials, and their values teach the sampler nothing."""
    spec = sweep(confirm=FEW.model_dump())
    launch(spec)
    more = spec.model_copy(
        update={
            "budget": spec.budget.model_copy(update={"n_trials": spec.budget.n_trials + 3}),
            "confirm": None,
        }
    )
    board = launch(more).leaderboard
    assert len(board.rows) == spec.budget.n_trials + 3
    assert board.confirmation is not None, "it stays"


def test_a_confirmation_ends_before_its_time_is_over(sweep: Sweep) -> None:
    """A repeat takes as long as a trial, to the step: six end in the time of six and a half."""
    spec = sweep(pruner="none", resources={"engine_options": {"step_seconds": 0.0005}})
    launch(spec)
    (each,) = {60 * row.minutes for row in open_sweep(spec.storage, spec.name).leaderboard().rows}
    short = ConfirmSpec(seeds=3, candidates=4, timeout=6.5 * each)
    found = launch(named(spec, confirm=short), confirm_only=True).leaderboard.confirmation
    assert found is not None
    assert found.num_repeats == 6
    more = ConfirmSpec(seeds=3, candidates=4, timeout=0.5 * each)
    assert launch(named(spec, confirm=more), confirm_only=True).status == "complete"
    assert len(repeats(open_sweep(spec.storage, spec.name).study)) == 6


def test_a_tolerance_lets_a_smaller_one_be_recommended(sweep: Sweep) -> None:
    """All are recommended from if anything is tolerated, and the first one alone if nothing is."""
    spec = sweep(pruner="none", confirm=FEW.model_dump())
    launch(spec)
    study = open_sweep(spec.storage, spec.name).study
    for tolerance in (0.0, 100.0):
        confirm = FEW.model_copy(update={"tolerance": tolerance})
        study.spec = named(spec, confirm=confirm)
        found = confirmation_of(study)
        assert found is not None
        first, *_ = found.rows
        least = min(row.trainable_parameters or 0 for row in found.rows)
        if tolerance:
            assert found.winner.trainable_parameters == least
        else:
            assert found.recommended == first.number
    assert first.trainable_parameters != least


def test_what_cannot_be_confirmed_is_told(sweep: Sweep) -> None:
    spec = sweep(resources={"engine_options": {"step_seconds": 0.01}})

    def stop(driver: Driver) -> None:
        if driver.running:
            driver.request_stop()

    assert launch(spec, LaunchCallbacks(on_change=stop)).status == "interrupted"
    with pytest.raises(SpecError, match=r"have not ended: `peft-sweep resume \S+` first"):
        launch(named(spec, confirm=FEW), confirm_only=True)
