"""Driver: between what executes trials and what records them, the same for all backends.

A backend asks for assignments, passes reports on and ends trials; the driver keeps study, files
and tracking in step, in this order: study, `result.json`, MLflow.
"""

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from optuna.trial import FrozenTrial

from peft_jobs import Kind, Progress, State, TrialResult
from peft_jobs.host.messages import Assignment, End, Interrupted, Message, Report
from sweeps.driver.budget import Budget
from sweeps.driver.late_files import LateFiles
from sweeps.driver.objective_fault import fault_of
from sweeps.driver.retention import Retention
from sweeps.driver.running import Running, overdue
from sweeps.driver.tracked_runs import all_metrics, now_ms, track_interruption, track_start
from sweeps.driver.trial_record import claim_adapter, record_end, record_missing, record_start
from sweeps.records.layout import SweepFolder
from sweeps.spec import SweepSpec
from sweeps.study.point import Point
from sweeps.study.study import SweepStudy
from sweeps.tracking import Tracker

log = logging.getLogger(__name__)

NOTE_SECONDS = 10.0
"""Between notes of how long the sweep was driven: what a killed driver may forget."""


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
    on_end: Callable[[], None] = lambda: None
    clock: Callable[[], float] = time.monotonic
    """Seconds of this machine, which setting its time does not move."""
    running: dict[int, Running] = field(default_factory=dict)
    ended: dict[int, TrialResult] = field(default_factory=dict)
    best: tuple[int, float] | None = None
    stop_requested: bool = field(default=False, init=False)
    """Somebody wants the sweep stopped; a backend looks in every round of its loop."""
    interrupted: bool = field(default=False, init=False)
    """The backend has left the sweep unfinished."""
    _stop_shown: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.budget = Budget(self.spec.budget, self.study.spent, self.clock)
        self._noted = self.budget.driven_seconds
        self._retention = Retention(self.folder)
        self._files = LateFiles()
        folder, tracker, results = self.folder, self.tracker, self.folder.results()
        for trial in self._recorded():
            self.on_tick()  # with many trials this takes long
            if trial.intermediate_values:
                self.budget.is_proven = True
            if "result" in trial.user_attrs:
                result = TrialResult.model_validate(trial.user_attrs["result"])
                self._count(trial.number, result)
                known = (folder, tracker, trial, self.spec.trial, result, trial.number in results)
                self._files.write(_files_of(trial.number), partial(record_missing, *known))
                self._retention.trial_ended(trial.number)
        self.budget.asked = len(self.ended)

    @property
    def counts(self) -> Counter[str]:
        """Ended trials by state, and RUNNING."""
        counts = self.budget.ended.copy()
        counts["RUNNING"] = len(self.running)
        return counts

    @property
    def wanted(self) -> int:
        """Trials that would run now if there were room for all, see `has_room`."""
        running = len(self.running)
        return running if self.stop_requested else self.budget.wanted(running)

    def has_room(self, slots: int) -> bool:
        """Whether one more trial may start on so many slots."""
        return self.budget.has_room(len(self.running), slots)

    def request_stop(self) -> None:
        """Ask the backend to stop; running trials leave a checkpoint at their next step."""
        self.stop_requested = True

    def tick(self) -> None:
        """To be called in every round of a backend's loop, also while nothing happens."""
        self._files.again()
        self.budget.hold()
        if self.budget.driven_seconds - self._noted >= NOTE_SECONDS:
            self.note_time()
        if self.on_tick():
            self.request_stop()
        if self.stop_requested and not self._stop_shown:
            self._stop_shown = True
            self.on_change(self)

    def overdue(self) -> list[tuple[int, Kind]]:
        """Trials that have run for too long, see `overdue`: the backend is to stop them."""
        return overdue(self.running, self.spec.budget.trial_timeout, self.clock())

    def note_time(self) -> None:
        """Record for how long the sweep was driven, and its GPUs were held."""
        self._noted = self.budget.driven_seconds
        self.study.note_spent((self._noted, self.budget.gpu_seconds))

    def ask(self) -> Assignment | None:
        """The next trial, started; None when no further one is to be started."""
        return None if (point := self.next_point()) is None else self.start(point)

    def next_point(self) -> Point | None:
        """`ask` without the start: what may take long, and may run beside reports."""
        if self.stop_requested or self.budget.is_spent(len(self.study.interrupted)):
            return None
        if (point := self.study.ask()) is None:
            self.budget.stop(self.study.exhausted)
            return None
        self.budget.asked += 1
        return point

    def start(self, point: Point) -> Assignment:
        """Record that a trial starts; what its host needs."""
        directory = self.folder.attempt(point.number, point.attempt)
        with contextlib.suppress(OSError):  # its host makes it, or says why it cannot
            directory.mkdir(parents=True, exist_ok=True)
        self._files.write(_files_of(point.number), partial(record_start, self.folder, point))
        self.running[point.number] = Running(point, time.time(), point.attempt, self.clock())
        track_start(self.tracker, point, now_ms())
        self.on_change(self)
        return point.assignment(self.folder.location_of(directory))

    def take(self, number: int, message: Message) -> Kind | None:
        """Take a host's message of a running trial; the kind that it is to be stopped with."""
        match message:
            case Report(progress=progress):
                return self.report(number, progress)
            case End(result=result):
                self.end(number, result)
            case Interrupted():
                self.interrupt(number)
        return None

    def report(self, number: int, progress: Progress) -> Kind | None:
        """Take a trial's report; the kind that the trial is to be stopped with: the pruner's
        `weak`, or that of a trial that cannot be compared. None if it may go on."""
        running, known = self.running[number], self.running[number].progress
        if known is None or progress.step >= known.step:  # a checkpoint may be named later
            running.progress = progress
        self.budget.is_proven = True
        if fault := fault_of(self.spec.objective, progress) or running.fault:
            running.fault = fault
            return fault.kind
        stop = None if self.study.report(number, progress) else Kind.WEAK
        if progress.checkpoint is not None:
            objective = self.spec.objective
            value = progress.metrics.get(objective.metric)
            loss = None if value is None or progress.rung is None else objective.as_loss(value)
            self._retention.checkpoint_left(number, progress.checkpoint, loss)
        self.tracker.trial_progress(number, all_metrics(progress), progress.step, now_ms())
        self.on_change(self)
        return stop

    def reattempt(self, number: int, attempt: int) -> None:
        """A lost host: the trial goes on as `attempt`."""
        if attempt > self.running[number].attempt:
            self.running[number].attempt = attempt
            self.study.set_attempt(number, attempt)

    def end(self, number: int, result: TrialResult) -> None:
        """End a trial: tell the study, then write `result.json`, then tell the tracker."""
        running = self.running.pop(number)
        if (fault := running.fault or fault_of(self.spec.objective, result)) is not None:
            result = fault.of(result)
        result = claim_adapter(self.folder, number, running.attempt, result)
        result = running.point.with_prediction(result)
        self.study.tell(number, result)
        self.budget.check_first(result.state, result.kind)
        self._count(number, result)
        trial = (number, running.attempt, running.point.spec)
        known = (self.folder, self.tracker, *trial, result, now_ms())
        self._files.write(_files_of(number), partial(record_end, *known))
        self._retention.trial_ended(number)
        self.drop_adapters()
        self.on_end()
        self.on_change(self)

    def interrupt(self, number: int) -> None:
        """A running trial was stopped without an end; it stays RUNNING for the next driver."""
        if self.running.pop(number, None) is not None:
            self.study.interrupt(number)
            track_interruption(self.tracker, number)
            self.on_change(self)

    def leave_running(self) -> None:
        """The backend stops before the sweep is finished: what still runs waits for the next."""
        self.interrupted = True
        for number in list(self.running):
            self.interrupt(number)

    def finish_files(self) -> None:
        """Write the files that could not be written before, or name them."""
        if left := self._files.finish():
            log.error("not written: %s; the next launch writes them", ", ".join(left))

    def drop_adapters(self) -> None:
        """Delete the adapters beyond `checkpoints.keep`, best first, once they are in MLflow."""
        keep = self.spec.checkpoints.keep
        complete = ((n, r) for n, r in self.ended.items() if r.state is State.COMPLETE)
        saved = {number: r.adapter for number, r in complete if r.adapter is not None}
        if keep is None or len(saved) <= keep:
            return
        ordered = [(number, saved[number]) for number in sorted(saved, key=self._order)]
        self._retention.drop_adapters(ordered[keep:], lambda number: not self.tracker.waits(number))

    def _order(self, number: int) -> tuple[bool, float, int]:
        """Sorts trials that have an adapter, the best one first."""
        result, objective = self.ended[number], self.spec.objective
        loss = objective.as_loss(result.metrics[objective.metric])
        return (not self.study.feasible(result), loss, number)

    def _recorded(self) -> list[FrozenTrial]:
        return self.study.launched()

    def _count(self, number: int, result: TrialResult) -> None:
        self.ended[number] = result
        self.budget.count(result.state)
        objective = self.spec.objective
        value = result.metrics.get(objective.metric)
        if result.state is not State.COMPLETE or value is None or not self.study.feasible(result):
            return
        if self.best is None or objective.as_loss(value) < objective.as_loss(self.best[1]):
            self.best = (number, value)


def _files_of(number: int) -> str:
    return f"the record of trial {number}"
