"""Limits the history that TPE is shown, so that one suggestion has a bounded cost.

Tree-structured Parzen estimators model the best trials and the rest, and weigh the rest the less
the older they are (`optuna.samplers._tpe.sampler.default_weights`). Shown are the newest of the
ended ones, the best, and all that run: below NEWEST ended trials that is everything.
"""

import bisect
import math
from collections.abc import Mapping, Sequence

from optuna.study._study_direction import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from sweeps.study.reruns import is_repeat

NEWEST = 1000
BEST = 25
"""As many as Optuna 5 ever counts among the best (`default_gamma`)."""
_LEARNT_FROM = (TrialState.COMPLETE, TrialState.PRUNED)


class Considered:
    """Kept up to date as trials end: choosing costs the same however many there are."""

    def __init__(self, direction: StudyDirection) -> None:
        self._sign = -1.0 if direction == StudyDirection.MAXIMIZE else 1.0
        self._best: list[tuple[tuple[float, ...], int]] = []
        """Scores and numbers, the best first."""

    def finished(self, trial: FrozenTrial) -> None:
        """Take note of a trial that has ended."""
        if trial.state in _LEARNT_FROM and not is_repeat(trial):
            bisect.insort(self._best, (self._score(trial), trial.number))
            del self._best[BEST:]

    def of(
        self, trials: Sequence[FrozenTrial], unfinished: Mapping[int, FrozenTrial]
    ) -> list[FrozenTrial]:
        """The chosen ones, by number."""
        chosen = {number: trials[number] for _, number in self._best}
        newest = 0
        for trial in reversed(trials):
            if newest == NEWEST:
                break
            if trial.state in _LEARNT_FROM:
                newest += 1
            chosen[trial.number] = trial
        chosen |= unfinished
        return [chosen[number] for number in sorted(chosen)]

    def _score(self, trial: FrozenTrial) -> tuple[float, ...]:
        """Orders as TPE does: complete, then pruned, then infeasible trials."""
        infeasible = sum(value for value in trial.constraints.values() if value > 0)
        if infeasible > 0:
            return (2.0, infeasible)
        if trial.state == TrialState.COMPLETE:
            return (0.0, self._sign * float(trial.value or 0.0))
        if not trial.intermediate_values:
            return (1.0, 1.0, 0.0)
        step, value = max(trial.intermediate_values.items())
        return (1.0, -step, math.inf if math.isnan(value) else self._sign * value)
