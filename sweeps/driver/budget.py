"""Budget: what may still start, and whether the sweep has failed."""

import time
from collections import Counter
from collections.abc import Callable

from peft_jobs import Kind, State
from sweeps.spec import BudgetSpec


class Budget:
    """Counts a sweep's trials against its section `budget`.

    The first trial of a sweep goes ahead alone until it reports: what is wrong with all trials is
    then seen in one.
    """

    def __init__(
        self,
        spec: BudgetSpec,
        spent_before: tuple[float, float] = (0.0, 0.0),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`spent_before` are the seconds of earlier drivers, and those of all their GPUs."""
        self.spec = spec
        self.started = time.time()
        """Seconds since the epoch."""
        self._clock, self._began = clock, clock()
        self._before, self.gpu_seconds = spent_before
        self._counted = self._began
        self.num_gpus: Callable[[], int] = lambda: 1
        """GPUs that the backend's hosts hold; a host without one counts as one."""
        self.asked = 0
        """Trials that were launched, by earlier drivers too."""
        self.ended: Counter[str] = Counter()
        """Ended trials by state."""
        self.is_proven = False
        """Some trial of the sweep has got beyond its first step."""
        self.failed = False
        self.stop_reason: str | None = None
        """Why no further trial is started, once that is so."""

    def hold(self) -> None:
        """Count the GPUs that are held for the time since the last call, or the start."""
        now = self._clock()
        self.gpu_seconds += self.num_gpus() * (now - self._counted)
        self._counted = now

    def count(self, state: State) -> None:
        """A trial has ended, now or under an earlier driver."""
        self.ended[str(state)] += 1
        if state is not State.FAIL:
            self.is_proven = True

    def check_first(self, state: State, kind: Kind | None) -> None:
        """Fail the sweep if its first trial, which ends now and is not counted yet, fails."""
        if state is State.FAIL and not self.is_proven:
            self.fail(f"its first trial failed at once ({kind}), as all might")

    def fail(self, reason: str) -> None:
        """End the sweep as failed: nothing more is started."""
        self.failed, self.stop_reason = True, reason

    def stop(self, reason: str) -> None:
        """Start nothing more; the sweep has not failed by that. A reason that is there stays."""
        self.stop_reason = self.stop_reason or reason

    def is_spent(self, num_waiting: int) -> bool:
        """Whether no trial may be asked for beside the `num_waiting` of an earlier driver."""
        if self.failed:
            return True
        if self.has_too_many_failures:
            self.fail(f"more than {self.spec.max_failures} trials failed")
        elif self.spec.timeout is not None and self.driven_seconds > self.spec.timeout:
            self.stop_reason = f"the timeout of {self.spec.timeout:g} seconds is over"
        elif (most := self.spec.most_gpu_hours) is not None and self.gpu_seconds > 3600 * most:
            self.stop_reason = f"the budget of {most:g} GPU-hours is spent"
        else:
            return self.asked >= self.spec.n_trials and not num_waiting
        return True

    @property
    def driven_seconds(self) -> float:
        """For which the sweep was driven, by earlier drivers too."""
        return self._before + self._clock() - self._began

    @property
    def has_too_many_failures(self) -> bool:
        """Whether more trials have failed than the sweep may endure."""
        return self.ended[State.FAIL] > self.spec.max_failures

    def has_room(self, num_running: int, slots: int) -> bool:
        """Whether one more trial may start on so many slots."""
        return num_running < (slots if self.is_proven else 1)

    def wanted(self, num_running: int) -> int:
        """Trials that would run now if there were room for all, see `has_room`."""
        if self.stop_reason is not None:
            return num_running
        left = self.spec.n_trials - self.ended.total()
        return max(num_running, left if self.is_proven else 1)
