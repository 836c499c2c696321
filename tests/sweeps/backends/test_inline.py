"""Whole inline sweeps on simulated trials: study and files agree, whatever happens in between."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest

from peft_jobs import SpecError, State
from sweeps import SweepSpec, run_sweep
from sweeps.driver.driver import Driver
from sweeps.results.recorded_sweep import open_sweep
from sweeps.run import LaunchCallbacks, launch
from sweeps.study.database import open_storage
from sweeps.study.study import SweepStudy
from sweeps.study.turned_away import NOT_LAUNCHED

Sweep = Callable[..., SweepSpec]
FAULTS = {"1": "bug", "3": "oom", "4": "diverged", "6": "data"}


def trials_of(spec: SweepSpec) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name=spec.name, storage=storage_of(spec)).get_trials()


def storage_of(spec: SweepSpec) -> optuna.storages.RDBStorage:
    return open_storage(f"sqlite:///{spec.storage}/optuna.db")


def records(spec: SweepSpec) -> list[Any]:
    """What the study and the files hold of each trial, without times, attempts and processes."""
    found = []
    for trial in trials_of(spec):
        result = dict(trial.user_attrs.get("result", {}))
        result.pop("provenance", None)
        attributes = {n: trial.user_attrs.get(n) for n in ("kind", "params", "fingerprint")}
        told = (trial.state.name, trial.value, trial.intermediate_values, trial.constraints)
        found.append((trial.number, attributes, told, result))
    return found


def check_files_agree(spec: SweepSpec) -> None:
    """Every trial's number, parameters, state, kind and value are the same in study and files."""
    folder = Path(spec.storage) / spec.name
    launched = [t for t in trials_of(spec) if t.user_attrs.get("kind") not in NOT_LAUNCHED]
    names = sorted(path.name for path in (folder / "trials").iterdir())
    assert names == [f"{t.number:04d}" for t in launched]
    board = json.loads((folder / "leaderboard.json").read_text())
    rows = {row["number"]: row for row in board["rows"]}
    assert sorted(rows) == [t.number for t in launched]
    base = json.loads((folder / "sweep.json").read_text())["sweep"]["trial"]
    for trial in launched:
        own = folder / "trials" / f"{trial.number:04d}"
        described = json.loads((own / "trial.json").read_text())
        result = json.loads((own / "result.json").read_text())
        for name, value in trial.user_attrs["params"].items():
            section, _, field = name.partition(".")
            assert described[section][field] == value
            described[section][field] = base[section][field]
        assert described == base
        row = rows[trial.number]
        assert result["state"] == trial.state.name == row["state"]
        assert result["kind"] == trial.user_attrs["kind"] == row["kind"]
        assert row["params"] == trial.user_attrs["params"]
        if trial.state.name == "COMPLETE":
            assert result["metrics"]["validation/loss"] == trial.value == row["value"]
        else:  # Optuna takes the last reported value for a pruned trial's own
            last = max(trial.intermediate_values, default=None)
            assert trial.value == trial.intermediate_values.get(last)
            assert row["value"] == trial.value
        assert {k: v for k, v in result.items() if k != "traceback"} == trial.user_attrs["result"]


def test_study_and_files_agree_on_every_trial_that_ended_in_any_way(sweep: Sweep) -> None:
    options = {"engine_options": {"num_slots": 3, "faults": FAULTS}, "max_concurrent": 3}
    constraint = "adapter.r * training.learning_rate < 0.1"
    spec = sweep(
        resources=options, space={"constraints": [constraint]}, budget={"n_trials": 24}, seed=3
    )
    outcome = launch(spec)
    assert outcome.status == "complete"
    check_files_agree(spec)
    kinds = Counter(str(t.user_attrs["kind"]) for t in trials_of(spec))
    assert kinds["bug"] + kinds["data"] == 2
    assert kinds["out_of_memory"] == kinds["diverged"] == 1
    assert min(kinds["weak"], kinds["None"], kinds["rejected"]) >= 1
    ended = sum(count for kind, count in kinds.items() if kind not in ("rejected", "duplicate"))
    assert ended == 24
    assert outcome.leaderboard.baseline == 4.0


def test_every_run_of_a_sequential_sweep_is_the_same(sweep: Sweep) -> None:
    first, second = sweep(name="first"), sweep(name="second")
    launch(first)
    launch(second)
    assert records(first) == records(second)


def test_run_sweep_returns_the_leaderboard_and_does_nothing_the_second_time(sweep: Sweep) -> None:
    board = run_sweep(sweep())
    assert board.best is not None
    assert len(board.rows) == 12
    assert run_sweep(sweep()) == board
    more = run_sweep(sweep(budget={"n_trials": 15}))
    assert len(more.rows) == 15


def test_too_many_failures_end_the_sweep_as_failed(sweep: Sweep) -> None:
    faults = dict.fromkeys(range(1, 100), "bug")
    resources = {"engine_options": {"faults": faults}}
    budget = {"n_trials": 50, "max_failures": 3}
    outcome = launch(sweep(resources=resources, budget=budget, pruner="none"))
    assert (outcome.status, outcome.reason) == ("failed", "more than 3 trials failed")
    assert len(outcome.leaderboard.rows) == 5
    with pytest.raises(RuntimeError, match="more than 3 trials failed"):
        run_sweep(sweep(resources=resources, budget=budget, pruner="none"))


def test_a_lost_device_ends_the_sweep_and_no_trial(sweep: Sweep) -> None:
    options = {"num_slots": 3, "faults": {"4": "device"}}
    outcome = launch(sweep(resources={"engine_options": options, "max_concurrent": 3}))
    assert (outcome.status, outcome.reason) == ("failed", "simulated device")
    states = Counter(trial.state.name for trial in trials_of(sweep()))
    assert states["FAIL"] == 0
    assert 1 <= states["RUNNING"] <= 3
    outcome = launch(sweep(resources={"engine_options": {"num_slots": 3}, "max_concurrent": 3}))
    assert outcome.status == "complete"
    assert len(outcome.leaderboard.rows) == 12
    check_files_agree(sweep())


def test_a_sweep_without_a_complete_trial_has_failed(sweep: Sweep) -> None:
    resources = {"engine_options": {"faults": dict.fromkeys(range(12), "oom")}}
    outcome = launch(sweep(resources=resources))
    assert (outcome.status, outcome.reason) == ("failed", "no trial completed")


def test_the_timeout_starts_no_further_trial_and_lets_running_ones_end(sweep: Sweep) -> None:
    resources = {"engine_options": {"step_seconds": 0.01}}
    budget = {"n_trials": 1000, "timeout": 0.5}
    spec = sweep(resources=resources, budget=budget, pruner="none")
    outcome = launch(spec)
    assert outcome.status == "complete"
    assert outcome.reason == "the timeout of 0.5 seconds is over"
    assert 1 <= len(outcome.leaderboard.rows) < 20
    assert {row.state for row in outcome.leaderboard.rows} == {"COMPLETE"}


def test_an_exhausted_space_ends_the_sweep_cleanly(sweep: Sweep) -> None:
    space = {"parameters": {"adapter.r": {"choices": [4, 8, 16]}}}
    outcome = launch(sweep(space=space, sampler="grid", pruner="none"))
    assert (outcome.status, outcome.reason) == ("complete", "the space is exhausted")
    assert sorted(row.params["adapter.r"] for row in outcome.leaderboard.rows) == [4, 8, 16]


@pytest.mark.parametrize("slots", [1, 3])
def test_an_interrupted_sweep_goes_on_and_ends_with_the_records_of_an_unbroken_one(
    sweep: Sweep, slots: int
) -> None:
    resources = {"engine_options": {"num_slots": slots}, "max_concurrent": slots}
    sections: dict[str, Any] = {"resources": resources, "sampler": "random"}
    if slots > 1:  # concurrent trials are pruned by who came first
        sections["pruner"] = "none"
    unbroken, broken = sweep(name="unbroken", **sections), sweep(name="broken", **sections)
    launch(unbroken)

    def interrupt_at(count: int) -> Callable[[Driver], None]:
        changes: list[int] = []

        def on_change(driver: Driver) -> None:
            if any(running.progress for running in driver.running.values()):
                changes.append(1)
                if len(changes) == count:
                    driver.request_stop()

        return on_change

    adopted: dict[int, int] = {}
    for count in (1, 2, 4, 7):
        outcome = launch(broken, callbacks=LaunchCallbacks(on_change=interrupt_at(count)))
        assert outcome.status == "interrupted"
        left = [t for t in trials_of(broken) if t.state.name == "RUNNING"]
        assert len(left) <= slots
        adopted |= {t.number: t.user_attrs["attempt"] for t in left}
        assert all("interrupted_at" in t.user_attrs for t in left)
        for trial in left:
            folder = Path(broken.storage) / broken.name / "trials" / f"{trial.number:04d}"
            assert not (folder / "result.json").exists()
    assert adopted
    assert launch(broken).status == "complete"
    for trial in trials_of(broken):
        attempts = adopted[trial.number] + 1 if trial.number in adopted else 1
        assert trial.user_attrs.get("attempt", 1) == attempts
    check_files_agree(broken)
    assert records(broken) == records(unbroken)


def test_an_interrupted_sweep_is_taken_up_by_the_next_call(sweep: Sweep) -> None:
    spec = sweep()

    def interrupt(driver: Driver) -> None:
        if driver.running:
            driver.request_stop()

    assert launch(spec, callbacks=LaunchCallbacks(on_change=interrupt)).status == "interrupted"
    assert run_sweep(spec).best is not None


def test_a_second_driver_of_a_sweep_is_refused(sweep: Sweep) -> None:
    spec = sweep()
    seen = []

    def on_change(driver: Driver) -> None:
        if not seen:
            with pytest.raises(SpecError, match="is being driven by process"):
                launch(spec)
            seen.append(True)

    assert launch(spec, callbacks=LaunchCallbacks(on_change=on_change)).status == "complete"
    assert seen


@pytest.mark.parametrize("count", [80, pytest.param(1000, marks=pytest.mark.slow)])
def test_many_trials_on_sixty_four_slots(sweep: Sweep, count: int) -> None:
    resources = {"engine_options": {"num_slots": 64}, "max_concurrent": 64}
    spec = sweep(resources=resources, budget={"n_trials": count}, sampler="random")
    outcome = launch(spec)
    assert outcome.status == "complete"
    states = Counter(row.state for row in outcome.leaderboard.rows)
    assert sum(states.values()) == count
    assert set(states) == {State.COMPLETE, State.PRUNED}
    assert states[State.PRUNED] > count / 2
    check_files_agree(spec)


def test_a_sweep_whose_first_trial_fails_at_once_stops_before_others_follow(sweep: Sweep) -> None:
    faults = dict.fromkeys(range(100), "bug")
    resources = {"engine_options": {"faults": faults, "num_slots": 8}, "max_concurrent": 8}
    spec = sweep(resources=resources, budget={"n_trials": 50})
    outcome = launch(spec)
    assert outcome.status == "failed"
    assert outcome.reason == "its first trial failed at once (bug), as all might"
    assert [t.state.name for t in trials_of(spec)] == ["FAIL"]
    assert len(launch(spec).leaderboard.rows) == 2, "each further launch tries one"


def test_the_first_trial_goes_ahead_and_the_others_follow_its_first_report(sweep: Sweep) -> None:
    resources = {"engine_options": {"num_slots": 3}, "max_concurrent": 3}
    seen: list[tuple[int, bool]] = []

    def on_change(driver: Driver) -> None:
        reported = any(running.progress for running in driver.running.values())
        seen.append((len(driver.running), reported or bool(driver.ended)))

    launch(sweep(resources=resources), callbacks=LaunchCallbacks(on_change=on_change))
    assert max(count for count, alive in seen if not alive) == 1
    assert max(count for count, _ in seen) == 3


def test_other_data_under_the_same_name_are_refused(sweep: Sweep) -> None:
    spec = sweep()
    launch(spec)
    study = SweepStudy(open_sweep(Path(spec.storage), spec.name).spec, storage_of(spec))
    same = dict.fromkeys(("model", "data", "template"), "simulated")
    study.take_over(same)
    with pytest.raises(SpecError, match="the data: was 'simulated', is 'others'"):
        study.take_over({**same, "data": "others"})


def test_an_engine_that_hangs_ends_the_launch_and_its_trial_waits(sweep: Sweep) -> None:
    resources = {"engine_options": {"faults": {2: "hang"}}, "stall_seconds": 1.0}
    outcome = launch(sweep(resources=resources))
    assert outcome.status == "failed"
    assert outcome.reason is not None
    assert "its engine has made no step for" in outcome.reason
    again = launch(sweep(resources={"engine_options": {}}))
    assert again.status == "complete"
    assert len(again.leaderboard.rows) == 12


@pytest.mark.parametrize("is_slow", [False, True], ids=["drawn at once", "drawn in a thread"])
def test_the_loop_pauses_while_trials_run_and_nothing_is_left_to_start(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, is_slow: bool
) -> None:
    """A loop that turns without a pause takes the interpreter from the engine's thread."""
    monkeypatch.setattr(SweepStudy, "is_slow", is_slow)
    turns, tick = [], Driver.tick
    monkeypatch.setattr(Driver, "tick", lambda driver: turns.append(tick(driver)))
    spec = sweep(
        resources={"engine_options": {"num_slots": 8, "step_seconds": 0.02}, "max_concurrent": 8},
        budget={"n_trials": 2},
        pruner="none",
    )
    assert launch(spec).status == "complete"
    steps = sum(trial.user_attrs["result"]["step"] for trial in trials_of(spec))
    assert steps > 200
    assert len(turns) < 60, "some at a report, a start and an end, and two a second"
