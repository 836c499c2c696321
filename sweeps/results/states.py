"""What a trial is at, in one word that every command and page has for it.

Optuna knows RUNNING; here that is a trial that a driver is at work on, and one that a driver has
left, with or without a word, is INTERRUPTED until the next one takes it up.
"""

import time

from optuna.trial import FrozenTrial, TrialState

from sweeps.study.lease import Holder

RUNNING, INTERRUPTED = "RUNNING", "INTERRUPTED"
ENDED = ("COMPLETE", "PRUNED", "FAIL")
STATES = (*ENDED, RUNNING, INTERRUPTED)
"""Of trials that were launched, in the order in which they are counted."""


def word(state: str) -> str:
    """A state as a person reads it: complete, pruned, failed, running, interrupted."""
    return {"FAIL": "failed"}.get(state, state.lower())


def state_of(trial: FrozenTrial, holder: Holder | None) -> str:
    """The state of a trial of a sweep that `holder` drives; None if nobody does."""
    if trial.state != TrialState.RUNNING or "result" in trial.user_attrs:
        return trial.state.name
    started, left = _times(trial)
    is_left = left is not None and left >= started
    driven = holder is not None and not holder.is_gone and started >= holder.since
    return RUNNING if driven and not is_left else INTERRUPTED


def minutes_so_far(trial: FrozenTrial, holder: Holder | None) -> float:
    """Of the attempt of a trial that has not ended: until now, until it was left, or until its
    driver was heard of last; 0.0 if none of these is known."""
    started, left = _times(trial)
    if not started:
        return 0.0
    if state_of(trial, holder) == RUNNING:
        left = time.time()
    elif (left is None or left < started) and holder is not None and started >= holder.since:
        left = holder.renewed
    return max(0.0, (left or started) - started) / 60


def _times(trial: FrozenTrial) -> tuple[float, float | None]:
    """When the newest attempt was started, and when a trial was left; seconds since the epoch."""
    return trial.user_attrs.get("started_at", 0.0), trial.user_attrs.get("interrupted_at")
