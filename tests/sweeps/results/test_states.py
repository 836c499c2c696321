"""One word for what a trial is at, whoever drives its sweep."""

import os
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from peft_jobs import Kind, State, TrialResult
from sweeps.results.ranking import make_leaderboard
from sweeps.results.reports import cells, header
from sweeps.results.states import minutes_so_far, state_of, word
from sweeps.results.trials import read_trials
from sweeps.study.lease import Lease, this_host
from sweeps.study.study import SweepStudy

Open = Callable[..., SweepStudy]


def test_a_trial_is_running_while_its_driver_lives_and_interrupted_from_then_on(
    open_study: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = open_study()
    lease = Lease(study.storage, study.spec.name)
    lease.take()
    point = study.ask()
    assert point is not None

    def state() -> str:
        (row,) = make_leaderboard(study).rows
        assert row.state == read_trials(study).rows[point.number].state
        board = make_leaderboard(study)
        shown = dict(zip(header(board), cells(row, board), strict=True))
        assert shown["state"] == word(row.state)
        return row.state

    assert state() == "RUNNING"
    holder = study.holder
    assert holder is not None
    monkeypatch.setattr("sweeps.study.lease._runs", lambda pid, started: False)
    assert state() == "INTERRUPTED", "its driver has died"
    monkeypatch.undo()
    (trial,) = study.launched()
    later = replace(holder, since=trial.user_attrs["started_at"] + 1)
    assert state_of(trial, later) == "INTERRUPTED", "the next driver has not taken it up yet"
    study.interrupt(point.number)
    assert state() == "INTERRUPTED", "left with a word"
    lease.release()
    assert state() == "INTERRUPTED", "nobody drives"


def test_minutes_of_a_trial_that_has_not_ended_are_true(open_study: Open) -> None:
    study = open_study()
    lease = Lease(study.storage, study.spec.name)
    lease.take()
    study.ask()
    (trial,) = study.launched()
    holder = study.holder
    assert holder is not None
    now = time.time()
    trial.user_attrs["started_at"] = now - 120
    alive = replace(holder, since=now - 300, renewed=now - 60)
    assert minutes_so_far(trial, alive) == pytest.approx(2.0, abs=0.2), "until now"
    dead = replace(alive, pid=os.getpid(), process_started=-1.0, host=this_host())
    assert minutes_so_far(trial, dead) == pytest.approx(1.0, abs=0.01), "until it was heard of"
    assert minutes_so_far(trial, None) == 0.0, "nobody knows"
    trial.user_attrs["interrupted_at"] = now - 90
    assert minutes_so_far(trial, None) == pytest.approx(0.5, abs=0.01), "until it was left"
    trial.user_attrs["interrupted_at"] = now - 500  # of an earlier attempt
    assert minutes_so_far(trial, alive) == pytest.approx(2.0, abs=0.2)


def test_ended_trials_keep_their_words(open_study: Open) -> None:
    study = open_study()
    kinds = {None: "complete", Kind.WEAK: "pruned", Kind.BUG: "failed"}
    for kind in kinds:
        point = study.ask()
        assert point is not None
        state = State.COMPLETE if kind is None else kind.state
        result = TrialResult(state=state, kind=kind, metrics={"validation/loss": 1.0})
        study.tell(point.number, result)
    words = [word(state_of(trial, study.holder)) for trial in study.launched()]
    assert words == list(kinds.values())
