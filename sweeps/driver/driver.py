"""Driver: between what executes trials and what records them, the same for all backends.

A backend asks for assignments, passes reports on and ends trials; the driver keeps study, files
and tracking in step, in this order: study, `result.json`, MLflow.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from peft_jobs import Progress, State, TrialResult
from peft_jobs.host.messages import Assignment
from peft_jobs.storage.files import write_json
from sweeps.driver.retention import Checkpoints
from sweeps.driver.tracked_runs import now_ms, track_start
from sweeps.driver.trial_record import claim_adapter, record_end, record_missing
from sweeps.records.layout import SweepFolder
from sweeps.spec import SweepSpec
from sweeps.study.asker import Point
from sweeps.study.study import SweepStudy
from sweeps.tracking import Tracker

log = logging.getLogger(__name__)


@dataclass
class Running:
    """What a live trial is at."""

    point: Point
    started: float
    attempt: int
    progress: Progress | None = None


@dataclass
class Driver:
    """The state of a running sweep. A backend calls it from one thread, but for `next_point`."""

    spec: SweepSpec
    study: SweepStudy
    tracker: Tracker
    folder: SweepFolder
    on_change: Callable[["Driver"], None] = lambda _: None
    on_tick: Callable[[], bool] = lambda: False
    """Called in every round of the backend's loop; True asks the driver to stop."""
    on_report: Callable[[], None] = lambda: None
    """Called for every report of a trial."""
    started: float = field(default_factory=time.time)
    running: dict[int, Running] = field(default_factory=dict)
    ended: dict[int, TrialResult] = field(default_factory=dict)
    best: tuple[int, float] | None = None
    stop_reason: str | None = None
    failed: bool = False
    """Too many trials failed."""
    interrupted: bool = False
    """Somebody wants the sweep stopped; a backend looks in every round of its loop."""
    _states: Counter[str] = field(default_factory=Counter)
    _dropped: set[int] = field(default_factory=set)
    """Trials whose adapters were deleted."""
    _asked: int = 0
    _alive: bool = False
    """Some trial of the sweep has got beyond its first step."""
    _told_interrupted: bool = False

    def __post_init__(self) -> None:
        self._checkpoints = Checkpoints(self.folder)
        folder, tracker, results = self.folder, self.tracker, self.folder.results()
        for trial in self.study.launched():
            self._alive = self._alive or bool(trial.intermediate_values)
            if "result" in trial.user_attrs:
                result = TrialResult.model_validate(trial.user_attrs["result"])
                self._count(trial.number, result)
                has_file = trial.number in results
                record_missing(folder, tracker, trial, self.spec.trial, result, has_file)
                self._checkpoints.ended(trial.number)
        self._asked = len(self.ended)

    @property
    def counts(self) -> Counter[str]:
        """Ended trials by state, and RUNNING."""
        counts = self._states.copy()
        counts["RUNNING"] = len(self.running)
        return counts

    @property
    def wanted(self) -> int:
        """Trials that would run now if there were room for all, see `has_room`."""
        if self.interrupted or self.stop_reason is not None:
            return len(self.running)
        left = self.spec.budget.n_trials - len(self.ended)
        return max(len(self.running), left if self._alive else 1)

    def tick(self) -> None:
        """To be called in every round of a backend's loop, also while nothing happens."""
        if self.on_tick():
            self.interrupted = True
        if self.interrupted and not self._told_interrupted:
            self._told_interrupted = True
            self.on_change(self)

    def has_room(self, slots: int) -> bool:
        """Whether one more trial may start on so many slots.

        The first trial of a sweep goes ahead alone until it reports: what is wrong with all
        trials is then seen in one.
        """
        return len(self.running) < (slots if self._alive else 1)

    def ask(self) -> Assignment | None:
        """The next trial, started; None when no further one is to be started."""
        point = self.next_point()
        return None if point is None else self.start(point)

    def next_point(self) -> Point | None:
        """`ask` without the start: what may take long, and may run beside reports."""
        if self.interrupted or self._out_of_budget():
            return None
        point = self.study.ask()
        if point is None:
            self.stop_reason = self.stop_reason or "the space is exhausted"
            return None
        self._asked += 1
        return point

    def start(self, point: Point) -> Assignment:
        """Record that a trial starts; what its host needs."""
        folder = self.folder.trial(point.number)
        directory = self.folder.attempt(point.number, point.attempt)
        directory.mkdir(parents=True, exist_ok=True)
        write_json(folder / "trial.json", point.spec.model_dump(mode="json"))
        self.folder.keep(folder / "trial.json")
        self.running[point.number] = Running(point, time.time(), point.attempt)
        track_start(self.tracker, point, now_ms())
        self.on_change(self)
        spec_json, location = point.spec.to_json(), self.folder.location_of(directory)
        return Assignment(point.number, point.attempt, spec_json, location, point.checkpoint)

    def report(self, number: int, progress: Progress) -> bool:
        """Take a trial's report; False if the pruner wants the trial stopped."""
        self._alive = True
        self.on_report()
        known = self.running[number].progress
        if known is None or progress.step >= known.step:  # a checkpoint may be named later
            self.running[number].progress = progress
        go_on = self.study.report(number, progress)
        if progress.checkpoint is not None:
            value = progress.metrics.get(self.spec.objective.metric)
            loss = None if value is None or progress.rung is None else self._loss(value)
            self._checkpoints.left(number, progress.checkpoint, loss)
        self.tracker.trial_progress(number, progress.metrics, progress.step, now_ms())
        self.on_change(self)
        return go_on

    def reattempt(self, number: int, attempt: int) -> None:
        """A lost host: the trial goes on as `attempt`."""
        if attempt > self.running[number].attempt:
            self.running[number].attempt = attempt
            self.study.set_attempt(number, attempt)

    def end(self, number: int, result: TrialResult) -> None:
        """End a trial: tell the study, then write `result.json`, then tell the tracker."""
        running = self.running.pop(number)
        result = claim_adapter(self.folder, number, running.attempt, result)
        self.study.tell(number, result)
        if result.state is State.FAIL and not self._alive:
            self.failed = True
            self.stop_reason = f"its first trial failed at once ({result.kind}), as all might"
        self._count(number, result)
        record_end(self.folder, self.tracker, number, running.attempt, result)
        self._checkpoints.ended(number)
        self.drop_adapters()
        self.on_change(self)

    def interrupt(self, number: int) -> None:
        """A running trial was stopped without an end; it stays RUNNING for the next driver."""
        if self.running.pop(number, None) is not None:
            self.study.interrupt(number)
            self.on_change(self)

    def drop_adapters(self) -> None:
        """Delete the adapters beyond `checkpoints.keep`, best first, once they are in MLflow."""
        keep = self.spec.checkpoints.keep
        if keep is None:
            return
        saved = {n: result for n, result in self.ended.items() if result.adapter is not None}
        if len(saved) <= keep:
            return

        def order(number: int) -> tuple[bool, float, int]:
            result = saved[number]
            value = result.metrics[self.spec.objective.metric]
            return (not self.study.feasible(result), self._loss(value), number)

        for number in sorted(saved, key=order)[keep:]:
            if number not in self._dropped and not self.tracker.waits(number):
                self.folder.remove(self.folder.path / str(saved[number].adapter))
                self._dropped.add(number)

    def _out_of_budget(self) -> bool:
        budget = self.spec.budget
        if self.failed:
            return True
        if self.counts[State.FAIL] > budget.max_failures:
            self.failed = True
            self.stop_reason = f"more than {budget.max_failures} trials failed"
        elif budget.timeout is not None and time.time() - self.started > budget.timeout:
            self.stop_reason = f"the timeout of {budget.timeout:g} seconds is over"
        else:
            left_running = len(self.study.interrupted)
            return self._asked >= budget.n_trials and not left_running
        return True

    def _count(self, number: int, result: TrialResult) -> None:
        self.ended[number] = result
        self._states[str(result.state)] += 1
        if result.state is not State.FAIL:
            self._alive = True
        value = result.metrics.get(self.spec.objective.metric)
        if result.state is not State.COMPLETE or value is None:
            return
        if not self.study.feasible(result):
            return
        if self.best is None or self._loss(value) < self._loss(self.best[1]):
            self.best = (number, value)

    def _loss(self, value: float) -> float:
        """The objective, to be minimised."""
        return value if self.spec.objective.direction == "minimize" else -value
