"""The driver: one ledger for all backends, between what executes trials and what records them.

A backend asks for assignments, passes reports on and ends trials; the driver keeps study, files
and tracking in step, in this order: study, `result.json`, MLflow.
"""

import logging
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from peft_jobs import Progress, State, TrialResult
from peft_jobs.files import write_json, write_whole
from sweeps.checks import flatten
from sweeps.layout import SweepFolder, run_name
from sweeps.spec import SweepSpec
from sweeps.study import Point, SweepStudy
from sweeps.tracking import Artifact, RunStatus, Tracker

log = logging.getLogger(__name__)

_RUN_STATUS: dict[State, RunStatus] = {
    State.COMPLETE: "FINISHED",
    State.PRUNED: "KILLED",
    State.FAIL: "FAILED",
}


@dataclass(frozen=True)
class Assignment:
    """What a host needs to run one attempt of a trial; plain JSON values."""

    trial: int
    attempt: int
    spec_json: str
    directory: str
    checkpoint: str | None


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
    started: float = field(default_factory=time.time)
    running: dict[int, Running] = field(default_factory=dict)
    ended: dict[int, TrialResult] = field(default_factory=dict)
    best: tuple[int, float] | None = None
    stop_reason: str | None = None
    interrupted: bool = False
    _asked: int = 0

    def __post_init__(self) -> None:
        for trial in self.study.launched():
            if "result" in trial.user_attrs:
                result = TrialResult.model_validate(trial.user_attrs["result"])
                self._count(trial.number, result)
                if not self._result_file(trial.number).exists():  # an earlier driver died here
                    self._record_end(trial.number, int(trial.user_attrs["attempt"]), result)
        self._asked = len(self.ended)

    @property
    def counts(self) -> Counter[str]:
        """Ended trials by state, and RUNNING."""
        counts = Counter(str(result.state) for result in self.ended.values())
        counts["RUNNING"] = len(self.running)
        return counts

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

    def report(self, number: int, progress: Progress) -> bool:
        """Take a trial's report; False if the pruner wants the trial stopped."""
        self.running[number].progress = progress
        go_on = self.study.report(number, progress)
        self.tracker.trial_progress(number, progress.metrics, progress.step, _now_ms())
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
        result = self._claim_adapter(number, running.attempt, result)
        self.study.tell(number, result)
        self._count(number, result)
        self._record_end(number, running.attempt, result)
        self.on_change(self)

    def interrupt(self, number: int) -> None:
        """A running trial was stopped without an end; it stays RUNNING for the next driver."""
        if self.running.pop(number, None) is not None:
            self.study.interrupt(number)
            self.on_change(self)

    def _out_of_budget(self) -> bool:
        budget = self.spec.budget
        if self.counts[State.FAIL] > budget.max_failures:
            self.stop_reason = f"more than {budget.max_failures} trials failed"
        elif budget.timeout is not None and time.time() - self.started > budget.timeout:
            self.stop_reason = f"the timeout of {budget.timeout:g} seconds is over"
        else:
            left_running = len(self.study.interrupted)
            return self._asked >= budget.n_trials and not left_running
        return True

    def start(self, point: Point) -> Assignment:
        """Record that a trial starts; what its host needs."""
        folder = self.folder.trial(point.number)
        directory = self.folder.attempt(point.number, point.attempt)
        directory.mkdir(parents=True, exist_ok=True)
        write_json(folder / "trial.json", point.spec.model_dump(mode="json"))
        self.running[point.number] = Running(point, time.time(), point.attempt)
        self.tracker.trial_started(
            point.number,
            run_name(point.number, point.params),
            flatten(point.spec),
            {"trial.number": str(point.number), "trial.state": State.RUNNING},
            _now_ms(),
        )
        self.on_change(self)
        spec_json = point.spec.to_json()
        return Assignment(point.number, point.attempt, spec_json, str(directory), point.checkpoint)

    def _claim_adapter(self, number: int, attempt: int, result: TrialResult) -> TrialResult:
        """Move a saved adapter from the attempt's folder to the trial's."""
        if result.adapter is None:
            return result
        source = self.folder.attempt(number, attempt) / result.adapter
        target = self.folder.trial(number) / "adapter"
        shutil.rmtree(target, ignore_errors=True)  # of a driver that died before it told the end
        source.rename(target)
        return result.model_copy(update={"adapter": str(target.relative_to(self.folder.path))})

    def _count(self, number: int, result: TrialResult) -> None:
        self.ended[number] = result
        value = result.metrics.get(self.spec.objective.metric)
        if result.state is not State.COMPLETE or value is None:
            return
        if not self.study.feasible(result):
            return
        sign = 1 if self.spec.objective.direction == "minimize" else -1
        if self.best is None or sign * value < sign * self.best[1]:
            self.best = (number, value)

    def _result_file(self, number: int) -> Path:
        return self.folder.trial(number) / "result.json"

    def _record_end(self, number: int, attempt_number: int, result: TrialResult) -> None:
        """Write `result.json` and tell the tracker, once the study was told."""
        attempt = self.folder.attempt(number, attempt_number)
        folder = self.folder.trial(number)
        if result.traceback:
            write_whole(attempt / "traceback.txt", result.traceback)
        write_json(self._result_file(number), result.model_dump(mode="json"))
        artifacts = [
            Artifact(path, to)
            for path, to in (
                (folder / "adapter", "adapter"),
                (folder / "trial.json", "config"),
                (folder / "result.json", "eval"),
                (attempt / "metrics.jsonl", "eval"),
                (attempt / "log.txt", "logs"),
                (attempt / "traceback.txt", "logs"),
            )
            if path.exists()
        ]
        self.tracker.trial_progress(number, result.metrics, result.step, _now_ms())
        metrics = {
            **{f"memory/{name}": float(value) for name, value in result.memory.items()},
            **{f"seconds/{name}": value for name, value in result.seconds.items()},
            "samples": float(result.samples),
            "tokens": float(result.tokens),
        }
        if result.trainable_parameters is not None:
            metrics["trainable_parameters"] = float(result.trainable_parameters)
        tags = {"trial.state": str(result.state), "trial.kind": str(result.kind or "complete")}
        if result.error:
            tags["trial.error"] = result.error
        status = _RUN_STATUS[result.state]
        self.tracker.trial_ended(number, status, metrics, tags, artifacts, _now_ms())


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
