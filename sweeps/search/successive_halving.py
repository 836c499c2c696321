"""Successive halving whose decisions cost the same however many trials there are.

Optuna's own collects and sorts a rung's values at every report. `CachedStorage` keeps them in
order, so that here the place of a new one is looked up; the decisions are Optuna's.
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


class Halving(SuccessiveHalvingPruner):
    """See Optuna's `SuccessiveHalvingPruner` for the arguments."""

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        step, least = trial.last_step, self._min_resource
        kept = getattr(study._storage, "rung", None)
        whole = isinstance(study, optuna.Study)  # not one in which a trial is as it was before
        if step is None or least is None or not whole or kept is None:
            return super().prune(study, trial)
        value = trial.intermediate_values[step]
        rung = 0
        while f"{RUNG_RECORD}{rung}" in trial.system_attrs:
            rung += 1
        while True:
            factor = self._reduction_factor ** (self._min_early_stopping_rate + rung)
            if step < least * factor:
                return False
            if math.isnan(value):
                return True
            name = f"{RUNG_RECORD}{rung}"
            others: Sequence[float] = kept(name)
            count = len(others) + 1
            if study.direction == StudyDirection.MAXIMIZE:
                better = count - 1 - bisect_right(others, value)
            else:
                better = bisect_left(others, value)
            study._storage.set_trial_system_attr(trial._trial_id, name, value)
            if count <= self._bootstrap_count or better >= max(1, count // self._reduction_factor):
                return True
            rung += 1
