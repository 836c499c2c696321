"""The pruner's decision at a rung, exact even where an earlier driver died in the middle of it.

Optuna's successive halving writes the rung's value into the trial before it compares, and what it
finds there it takes as decided. So a decision that was begun and not recorded is made again as if
it had not been begun.
"""

import copy
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from sweeps.search.successive_halving import RUNG_RECORD


def should_stop(study: optuna.Study, trial: FrozenTrial, recorded_rungs: Sequence[str]) -> bool:
    """Whether the pruner wants `trial` stopped at its last reported step.

    `recorded_rungs` are its `rung_records` when its last decision was recorded.
    """
    begun = set(rung_records(trial)) - set(recorded_rungs)
    if not begun:
        return study.pruner.prune(study, trial)
    before = _without(trial, begun)
    return study.pruner.prune(_Before(study, before), before)  # type: ignore[arg-type]


def rung_records(trial: FrozenTrial) -> list[str]:
    """The names under which a pruner has recorded rungs in `trial`."""
    return sorted(name for name in trial.system_attrs if RUNG_RECORD in name)


class _Before:
    """A study in which one trial is as it was before."""

    def __init__(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self._study, self._trial = study, trial

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    def get_trials(self, *args: Any, **kwargs: Any) -> list[FrozenTrial]:
        trials = self._study.get_trials(*args, **kwargs)
        return [self._trial if t.number == self._trial.number else t for t in trials]


def _without(trial: FrozenTrial, names: set[str]) -> FrozenTrial:
    before = copy.copy(trial)
    before.system_attrs = {k: v for k, v in trial.system_attrs.items() if k not in names}
    return before
