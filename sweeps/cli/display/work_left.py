"""What a running sweep still has to train: expected from its pruner, then from its own trials."""

from bisect import bisect, bisect_right, insort
from collections.abc import Sequence

from sweeps.search.samplers import first_learnt
from sweeps.search.survival import Range, survival
from sweeps.spec import SweepSpec

PRIOR_TRIALS = 8.0
"""As many ended trials say as much as what was expected before the first one."""
TRIALS_TRIED = 400


class WorkLeft:
    """Counts in trials' worth of training: one that is pruned counts in part."""

    def __init__(self, spec: SweepSpec) -> None:
        """`spec` is resolved: its rungs and samples are known."""
        self._horizon = spec.trial.training.max_samples or 1
        rungs = spec.trial.evaluation.rungs
        self._stops = [*(rung / self._horizon for rung in rungs), 1.0]
        n_trials, slots, first = (
            spec.budget.n_trials,
            spec.resources.slots,
            first_learnt(spec.sampler),
        )
        known = (spec.pruner, n_trials, self._horizon, rungs, slots, first, TRIALS_TRIED)
        self._prior = survival(*known).samples if rungs else Range(1.0, 1.0, 1.0)
        self._shares: list[float] = []
        """Of the horizon, by trial that has ended here; sorted."""

    def share(self, samples: int) -> float:
        """Of a trial's whole training."""
        return min(1.0, samples / self._horizon)

    def end(self, share: float) -> None:
        """A trial has ended there."""
        insort(self._shares, share)

    def done(self, current: Sequence[float]) -> float:
        """By trials that have ended, and those that are at `current`."""
        return sum(self._shares) + sum(current)

    def left(self, num_waiting: int, current: Sequence[float]) -> tuple[float, float]:
        """What trials that wait, and those that are at `current`, will train: from, to."""
        low = num_waiting * self._mean(self._shares, self._prior.low)
        high = num_waiting * self._mean(self._shares, self._prior.high)
        for at in current:
            further = self._shares[bisect(self._shares, at) :]
            next_stop = self._stops[min(bisect_right(self._stops, at), len(self._stops) - 1)]
            low += self._mean(further, next_stop) - at
            high += self._mean(further, 1.0) - at
        return low, high

    def _mean(self, shares: Sequence[float], prior: float) -> float:
        return (sum(shares) + PRIOR_TRIALS * prior) / (len(shares) + PRIOR_TRIALS)
