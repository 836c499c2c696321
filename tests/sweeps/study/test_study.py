"""The study: what is asked, turned away, told, and taken up again."""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from peft_jobs import Kind, Progress, SpecError, State, TrialResult
from sweeps.study.database import open_storage
from sweeps.study.reruns import retry_failed
from sweeps.study.study import SweepStudy
from sweeps.study.turned_away import NOT_LAUNCHED

Open = Callable[..., SweepStudy]
FINITE = {
    "parameters": {
        "adapter.r": {"choices": [4, 8]},
        "adapter.lora_alpha": "2 * adapter.r",
        "training.learning_rate": {"low": 0.001, "high": 0.003, "step": 0.001},
    }
}
GRID = {**FINITE, "parameters": {**FINITE["parameters"], "adapter.r": {"choices": [2, 4, 8, 16]}}}


def ask_and_run(study: SweepStudy, run: Any, count: int) -> list[tuple[int, Any]]:
    """The next `count` points, each run to its end before the next is asked."""
    points = []
    while len(points) < count and (point := study.ask()) is not None:
        points.append((point.number, point.params))
        run(study, point)
    return points


def fail(kind: Kind, **seen: Any) -> TrialResult:
    return TrialResult(state=kind.state, kind=kind, error="as told", **seen)


def test_a_duplicate_is_pruned_with_a_violated_constraint_and_not_launched(
    open_study: Open, run: Any
) -> None:
    study = open_study(space=FINITE, sampler="random", pruner="none")
    ask_and_run(study, run, 6)
    away = [t for t in study.trials() if t.user_attrs.get("kind") == Kind.DUPLICATE]
    assert away
    for trial in away:
        assert trial.state == TrialState.PRUNED
        assert trial.constraints == {"duplicate": 1.0}
        assert trial.user_attrs["reason"].startswith("the same as trial ")
    assert len(study.launched()) == 6
    assert len({t.user_attrs["fingerprint"] for t in study.launched()}) == 6


def test_a_finite_space_ends_cleanly_when_it_is_exhausted(open_study: Open, run: Any) -> None:
    study = open_study(space=FINITE, sampler="random")
    assert len(ask_and_run(study, run, 100)) == 6
    assert study.ask() is None


def test_a_space_whose_size_is_only_bounded_ends_after_capped_asks(
    open_study: Open, run: Any
) -> None:
    bounded = {**FINITE, "constraints": ["adapter.r == 4 or training.learning_rate < 0.0015"]}
    study = open_study(space=bounded, sampler="random")
    assert len(ask_and_run(study, run, 100)) == 4


def test_a_rejected_point_is_pruned_with_a_violated_constraint_and_not_launched(
    open_study: Open, run: Any
) -> None:
    constraint = "adapter.r * training.learning_rate < 0.05"
    space = {"constraints": [constraint]}
    study = open_study(space=space, sampler="random")
    asked = ask_and_run(study, run, 10)
    away = [t for t in study.trials() if t.user_attrs.get("kind") == Kind.REJECTED]
    assert away
    for trial in away:
        assert trial.state == TrialState.PRUNED
        assert trial.constraints == {"rejected": 1.0}
        assert trial.user_attrs["reason"] == constraint
    assert len(asked) == 10
    assert all(p["adapter.r"] * p["training.learning_rate"] < 0.05 for _, p in asked)


@pytest.mark.parametrize("kind", [Kind.OUT_OF_MEMORY, Kind.DIVERGED, Kind.REFUSED])
def test_what_no_trial_at_the_point_can_escape_is_pruned_with_a_constraint(
    open_study: Open, kind: Kind
) -> None:
    study = open_study()
    point = study.ask()
    assert point is not None
    study.tell(point.number, fail(kind, metrics={"validation/loss": 3.0}))
    trial = study.trials()[point.number]
    assert trial.state == TrialState.PRUNED
    assert trial.constraints == {str(kind): 1.0}
    assert trial.user_attrs["kind"] == kind
    assert trial.value is None


@pytest.mark.parametrize("kind", [Kind.BUG, Kind.DATA, Kind.LOST])
def test_a_failure_is_told_as_fail_without_a_constraint(open_study: Open, kind: Kind) -> None:
    study = open_study()
    point = study.ask()
    assert point is not None
    study.tell(point.number, fail(kind))
    trial = study.trials()[point.number]
    assert trial.state == TrialState.FAIL
    assert trial.constraints == {}
    assert point.number in [t.number for t in study.launched()]


def test_constraint_values_are_relative_to_their_bounds(open_study: Open) -> None:
    bounds = {"memory/peak_rss_bytes": 100.0, "trainable_parameters": 50.0, "minutes": 2.0}
    study = open_study(constraints=bounds)
    point = study.ask()
    assert point is not None
    result = TrialResult(
        state=State.COMPLETE,
        metrics={"validation/loss": 1.0},
        memory={"peak_rss_bytes": 150},
        trainable_parameters=25,
        seconds={"train": 60.0, "evaluate": 60.0},
    )
    assert not study.feasible(result)
    study.tell(point.number, result)
    constraints = study.trials()[point.number].constraints
    assert constraints == {
        "memory/peak_rss_bytes": 0.5,
        "trainable_parameters": -0.5,
        "minutes": 0.0,
    }


@pytest.mark.parametrize("sampler", ["random", "tpe", "qmc", "cmaes"])
def test_two_studies_of_one_seed_ask_the_same_points(
    open_study: Open, run: Any, sampler: str
) -> None:
    first = open_study(name="first", sampler=sampler, pruner="none")
    second = open_study(name="second", sampler=sampler, pruner="none")
    other = open_study(name="other", sampler=sampler, pruner="none", seed=2)
    asked = ask_and_run(first, run, 14)
    assert ask_and_run(second, run, 14) == asked
    assert ask_and_run(other, run, 14) != asked


@pytest.mark.parametrize("sampler", ["random", "tpe", "qmc", "cmaes", "gp"])
def test_the_first_trials_take_the_points_that_are_given(
    open_study: Open, run: Any, sampler: str
) -> None:
    points = [{"adapter.r": 8, "training.learning_rate": 3e-3}, *[{"adapter.r": 32}] * 2]
    study = open_study(space={"points_to_evaluate": points}, sampler=sampler, pruner="none")
    asked = ask_and_run(study, run, 1)
    failed = study.ask()
    assert failed is not None
    study.tell(failed.number, fail(Kind.BUG))
    again = open_study(space={"points_to_evaluate": points}, sampler=sampler, pruner="none")
    assert retry_failed(again) == [failed.number]
    asked += ask_and_run(again, run, 4)
    ranks = [params["adapter.r"] for _, params in asked]
    rates = [params["training.learning_rate"] for _, params in asked]
    assert ranks[:3] == [8, 32, 32]
    assert asked[1][1] == failed.params, "the failed trial runs again as it was"
    assert rates[0] == 3e-3
    assert len(set(rates)) == 5, "what a point leaves out is sampled for each trial anew"
    assert [params["adapter.lora_alpha"] for _, params in asked] == [2 * r for r in ranks]


def check_resumed(open_study: Open, run: Any, **sections: Any) -> None:
    """A study that is taken up after every few points asks what an unbroken one asks."""
    unbroken = ask_and_run(open_study(name="unbroken", **sections), run, 16)
    resumed: list[tuple[int, Any]] = []
    for count in (1, 6, 5, 4):
        resumed += ask_and_run(open_study(name="resumed", **sections), run, count)
    assert len(unbroken) == 16
    assert resumed == unbroken


@pytest.mark.parametrize("sampler", ["random", "tpe", "qmc", "cmaes"])
def test_a_resumed_study_asks_what_an_unbroken_one_would_have_asked(
    open_study: Open, run: Any, sampler: str
) -> None:
    check_resumed(open_study, run, sampler=sampler)


def test_a_resumed_grid_asks_what_an_unbroken_one_would_have_asked(
    open_study: Open, run: Any
) -> None:
    fine = {"low": 0.001, "high": 0.004, "step": 0.001}
    space = {"parameters": {**GRID["parameters"], "training.learning_rate": fine}}
    check_resumed(open_study, run, sampler="grid", space=space)


@pytest.mark.slow
def test_a_resumed_gp_asks_what_an_unbroken_one_would_have_asked(
    open_study: Open, run: Any
) -> None:
    check_resumed(open_study, run, sampler="gp")


@pytest.mark.parametrize("sampler", ["random", "tpe", "qmc", "cmaes", "grid"])
def test_a_trial_that_was_left_running_is_adopted_first_and_changes_no_later_point(
    open_study: Open, run: Any, sampler: str
) -> None:
    space = GRID if sampler == "grid" else {}
    unbroken = ask_and_run(open_study(name="unbroken", sampler=sampler, space=space), run, 12)

    study = open_study(name="broken", sampler=sampler, space=space)
    asked = ask_and_run(study, run, 5)
    left = study.ask()
    assert left is not None
    progress = Progress(step=1, samples=9, tokens=9, metrics={}, checkpoint="where it was")
    assert study.report(left.number, progress)
    study.interrupt(left.number)
    assert "interrupted_at" in study.trials()[left.number].user_attrs

    resumed = open_study(name="broken", sampler=sampler, space=space)
    assert resumed.interrupted == [left.number]
    adopted = resumed.ask()
    assert adopted is not None
    assert (adopted.number, adopted.params) == (left.number, left.params)
    assert (adopted.attempt, adopted.checkpoint) == (2, "where it was")
    assert adopted.spec == left.spec
    run(resumed, adopted)
    asked += [(adopted.number, adopted.params), *ask_and_run(resumed, run, 6)]
    assert asked == unbroken


@pytest.mark.parametrize("sampler", ["random", "tpe", "qmc", "grid"])
def test_a_trial_whose_driver_died_while_asking_gets_the_point_it_would_have_had(
    open_study: Open, run: Any, sampler: str
) -> None:
    space = GRID if sampler == "grid" else {}
    unbroken = ask_and_run(open_study(name="unbroken", sampler=sampler, space=space), run, 12)

    study = open_study(name="broken", sampler=sampler, space=space)
    asked = ask_and_run(study, run, 11)
    assert study._asker is not None
    study._asker._take_sampler(11)
    study.optuna.ask()  # and the driver dies here, before any parameter is drawn
    asked += ask_and_run(open_study(name="broken", sampler=sampler, space=space), run, 1)
    assert asked == unbroken


def test_a_tell_that_its_driver_did_not_survive_is_finished_by_the_next_one(
    open_study: Open,
) -> None:
    study = open_study()
    point = study.ask()
    assert point is not None
    result = TrialResult(state=State.COMPLETE, metrics={"validation/loss": 1.5}, step=7)
    record = result.model_dump(mode="json", exclude={"traceback"})
    study._live[point.number].set_user_attr("kind", None)
    study._live[point.number].set_user_attr("result", record)
    assert study.trials()[point.number].state == TrialState.RUNNING

    resumed = open_study()
    assert resumed.trials()[point.number].state == TrialState.COMPLETE
    assert resumed.trials()[point.number].value == 1.5
    assert resumed.interrupted == []


def test_a_rung_keeps_its_first_value_and_a_decision_to_prune_stands(open_study: Open) -> None:
    study = open_study(pruner={"type": "threshold", "upper": 2.0})
    point = study.ask()
    assert point is not None

    def progress(rung: int | None, loss: float) -> Progress:
        metrics = {"validation/loss": loss}
        return Progress(step=1, samples=1, tokens=1, metrics=metrics, rung=rung)

    assert study.report(point.number, progress(None, 9.0))  # between rungs nothing is compared
    assert study.report(point.number, progress(100, 1.0))
    assert study.report(point.number, progress(100, 9.0))  # repeated by a later attempt
    assert study.trials()[point.number].intermediate_values == {100: 1.0}
    assert not study.report(point.number, progress(300, 3.0))
    adopted = open_study(pruner={"type": "threshold", "upper": 2.0})
    assert adopted.ask() is not None
    assert not adopted.report(point.number, progress(None, 1.0))


def test_a_changed_spec_is_refused_with_the_difference(open_study: Open) -> None:
    open_study()
    open_study()
    with pytest.raises(SpecError) as caught:
        open_study(training={"weight_decay": 0.1}, seed=2)
    text = str(caught.value)
    assert "trial.training.weight_decay: was 0.0, is 0.1" in text
    assert "trial.seed: was 1, is 2" in text
    assert "learning_rate" not in text


def test_a_study_from_before_points_could_be_given_is_taken_up(open_study: Open) -> None:
    before = open_study().optuna.user_attrs["spec"]
    assert not [name for name in before if "points_to_evaluate" in name]
    with pytest.raises(SpecError, match=r"points_to_evaluate: was None, is \[\{"):
        open_study(space={"points_to_evaluate": [{"adapter.r": 8}]})


def test_budget_resources_and_tracking_may_change(open_study: Open) -> None:
    open_study()
    larger = {"n_trials": 100, "timeout": 60.0, "max_failures": 9}
    open_study(budget=larger, resources={"max_concurrent": 3})
    with pytest.raises(SpecError, match=r"max_samples: was 900, is 901"):
        open_study(budget={"max_samples": 901})


def test_sqlite_runs_with_a_write_ahead_log(open_study: Open, tmp_path: Path) -> None:
    study = open_study()
    assert study.ask() is not None
    with sqlite3.connect(tmp_path / "runs" / "optuna.db") as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_database_that_cannot_be_opened_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="cannot be opened"):
        open_storage(f"sqlite:///{tmp_path / 'nowhere' / 'optuna.db'}")
    with pytest.raises(SpecError, match="cannot be opened") as caught:
        open_storage("postgresql://me:hush@127.0.0.1:1/none")
    assert "hush" not in str(caught.value)


def test_what_was_turned_away_may_not_be_counted(open_study: Open, run: Any) -> None:
    study = open_study(space=FINITE, sampler="random")
    ask_and_run(study, run, 6)
    away = [t for t in study.trials() if t.user_attrs.get("kind") in NOT_LAUNCHED]
    assert len(study.launched()) == len(study.trials()) - len(away) == 6


def test_optuna_s_own_tools_find_names_and_numbers(open_study: Open, tmp_path: Path) -> None:
    study = open_study()
    point = study.ask()
    assert point is not None
    memory = {"peak_allocated_bytes": 3 * 2**29, "peak_rss_bytes": 1}
    measured = {"seconds": {"train": 90.0}, "memory": memory, "trainable_parameters": 7}
    metrics = {"validation/loss": 1.0}
    study.tell(point.number, TrialResult(state=State.COMPLETE, metrics=metrics, **measured))
    seen = optuna.load_study(
        study_name="simulated", storage=f"sqlite:///{tmp_path / 'runs' / 'optuna.db'}"
    )
    assert seen.metric_names == ["validation/loss"]
    attrs = seen.trials[0].user_attrs
    assert (attrs["minutes"], attrs["peak_memory_gib"]) == (1.5, 1.5)
    assert attrs["trainable_parameters"] == 7
