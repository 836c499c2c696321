"""What a running sweep is at, as a snapshot that another thread may render.

The driver is not thread-safe: `Observer.see` runs in its thread and copies what is shown.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from peft_jobs import Progress, State, TrialResult
from search_spaces import Params
from sweeps.cli.display.work_left import WorkLeft
from sweeps.driver.driver import Driver
from sweeps.results.states import ENDED, INTERRUPTED, RUNNING
from sweeps.spec import SweepSpec

LATEST = 5
"""Ended trials that are shown."""


@dataclass(frozen=True)
class RunningTrial:
    number: int
    attempt: int
    started: float
    params: Params
    progress: Progress | None


@dataclass(frozen=True)
class EndedTrial:
    number: int
    seconds: float
    """Since it was started by this process."""
    params: Params
    result: TrialResult
    value: float | None
    """The objective, as it was last measured."""


@dataclass(frozen=True)
class Snapshot:
    """One moment of a sweep."""

    counts: Mapping[str, int] = field(default_factory=dict)
    """Trials by state."""
    running: tuple[RunningTrial, ...] = ()
    latest: tuple[EndedTrial, ...] = ()
    """Newest first."""
    best: tuple[int, float] | None = None
    best_params: Params = field(default_factory=dict)
    work: float = 0.0
    """Trials' worth of training done by this process; a trial that was pruned counts in part."""
    work_left: tuple[float, float] | None = None
    """From, to."""
    started: float = field(default_factory=time.time)

    @property
    def ended(self) -> int:
        return sum(self.counts.get(state, 0) for state in ENDED)

    def seconds_left(self, now: float) -> tuple[float, float] | None:
        """From, to, at the speed so far; None while too little has been done."""
        elapsed = now - self.started
        if self.work_left is None or self.work < 0.2 or elapsed < 2:
            return None
        low, high = (work * elapsed / self.work for work in self.work_left)
        return low, high


class Observer:
    """Takes snapshots of a driver, and notices what has happened since the last one."""

    def __init__(self, spec: SweepSpec) -> None:
        size, n_trials = spec.space.size(), spec.budget.n_trials
        self.total = n_trials if size is None else min(size, n_trials)
        self.interrupted: list[int] = []
        """Trials that were running and have been stopped without an end."""
        self._metric = spec.objective.metric
        self._values: dict[int, float] = {}
        self._work_left: WorkLeft | None = None
        self._running: dict[int, RunningTrial] = {}
        self._params: dict[int, Params] = {}
        self._latest: tuple[EndedTrial, ...] = ()
        self._counts: tuple[int, dict[str, int]] = (-1, {})

    def see(self, driver: Driver) -> tuple[Snapshot, list[EndedTrial]]:
        """The driver's state, and the trials that have ended since the last call."""
        if self._work_left is None:
            self._work_left = WorkLeft(driver.spec)
        running = {
            number: RunningTrial(
                number, trial.attempt, trial.started, trial.point.params, trial.progress
            )
            for number, trial in list(driver.running.items())
        }
        ended = []
        for number in self._running.keys() - running.keys():
            if number in driver.ended:
                ended.append(self._end(self._running[number], driver.ended[number]))
                self._work_left.end(_share_of(driver.ended[number], self._work_left))
            else:
                self.interrupted.append(number)
        for number, trial in running.items():
            if trial.progress is not None and self._metric in trial.progress.metrics:
                self._values[number] = trial.progress.metrics[self._metric]
        self._running = running
        self._params |= {number: trial.params for number, trial in running.items()}
        self._latest = (*reversed(ended), *self._latest)[:LATEST]
        if self._counts[0] != len(driver.ended):  # counting goes over all ended trials
            self._counts = (len(driver.ended), dict(driver.counts))
        unfinished = {RUNNING: len(running), INTERRUPTED: len(driver.study.interrupted)}
        counts = self._counts[1] | unfinished
        current = [
            self._work_left.share(trial.progress.samples) if trial.progress else 0.0
            for trial in running.values()
        ]
        num_waiting = max(0, self.total - len(driver.ended) - len(current))
        best = driver.best
        snapshot = Snapshot(
            counts=counts,
            running=tuple(running.values()),
            latest=self._latest,
            best=best,
            best_params={} if best is None else self._params_of(best[0], driver),
            work=self._work_left.done(current),
            work_left=self._work_left.left(num_waiting, current),
            started=driver.budget.started,
        )
        return snapshot, ended

    def _end(self, trial: RunningTrial, result: TrialResult) -> EndedTrial:
        value = result.metrics.get(self._metric, self._values.get(trial.number))
        return EndedTrial(trial.number, time.time() - trial.started, trial.params, result, value)

    def _params_of(self, number: int, driver: Driver) -> Params:
        if number not in self._params:  # it ended under an earlier driver
            self._params[number] = driver.study.trials()[number].user_attrs["params"]
        return self._params[number]


def _share_of(result: TrialResult, work: WorkLeft) -> float:
    return 1.0 if result.state is State.COMPLETE else work.share(result.samples)
