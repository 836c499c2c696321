"""Successive halving that compares like with like, and not before there is something to compare.

Trials are compared with those of their own adapter method: methods that start slowly are otherwise
stopped by those that start fast. At a rung none is stopped before `n_startup_trials` have passed
it, and the part of them that goes on, one of `reduction_factor`, is rounded up, where Optuna rounds
down: of few trials the second best at a rung is often the best at its end (measured in
`infra/benchmarks/regret.md`). All else is Optuna's decision, which here costs the same however many
trials there are: `CachedStorage` keeps a rung's values in order, and the place of a new one is
looked up.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

import optuna
from optuna.pruners import SuccessiveHalvingPruner
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

RUNG_RECORD = "completed_rung_"
"""In the names of the system attributes that Optuna 5's successive halving leaves."""
STARTUP_TRIALS = 5
"""Optuna's number for its median pruner."""
_METHOD = "adapter.method"


class Halving(SuccessiveHalvingPruner):
    """See Optuna's `SuccessiveHalvingPruner` for the other arguments."""

    def __init__(
        self,
        min_resource: str | int = "auto",
        reduction_factor: int = 4,
        min_early_stopping_rate: int = 0,
        bootstrap_count: int = 0,
        n_startup_trials: int = STARTUP_TRIALS,
    ) -> None:
        super().__init__(min_resource, reduction_factor, min_early_stopping_rate, bootstrap_count)
        if n_startup_trials < 0:
            raise ValueError(f"n_startup_trials must be >= 0, got {n_startup_trials}")
        self._n_startup_trials = n_startup_trials

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        step, least = trial.last_step, self._min_resource
        if step is None or least is None:  # Optuna's way to find the least
            return step is not None and super().prune(study, trial)
        value = trial.intermediate_values[step]
        method = trial.params.get(_METHOD)
        suffix = "" if method is None else f"/{method}"
        rung = 0
        while f"{RUNG_RECORD}{rung}{suffix}" in trial.system_attrs:
            rung += 1
        while True:
            factor = self._reduction_factor ** (self._min_early_stopping_rate + rung)
            if step < least * factor:
                return False
            if math.isnan(value):
                return True
            name = f"{RUNG_RECORD}{rung}{suffix}"
            others = _values(study, trial, name)
            count = len(others) + 1
            if study.direction == StudyDirection.MAXIMIZE:
                better = count - 1 - bisect_right(others, value)
            else:
                better = bisect_left(others, value)
            study._storage.set_trial_system_attr(trial._trial_id, name, value)
            if count <= self._bootstrap_count:
                return True
            is_weak = better >= -(-count // self._reduction_factor)
            if is_weak and count >= self._n_startup_trials:
                return True
            rung += 1


def _values(study: optuna.Study, trial: FrozenTrial, name: str) -> Sequence[float]:
    """What the other trials have recorded under that name, ascending."""
    kept = getattr(study._storage, "rung", None)
    if kept is not None and isinstance(study, optuna.Study):
        found: Sequence[float] = kept(name)
        return found
    others = (t for t in study.get_trials(deepcopy=False) if t.number != trial.number)
    return sorted(t.system_attrs[name] for t in others if name in t.system_attrs)
