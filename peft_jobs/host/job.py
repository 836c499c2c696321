"""A job is one attempt of one trial, seen from the engine that runs it.

The engine reports and ends; the host's callers acknowledge and cancel. All state changes happen
under the host's one condition variable, which is notified on each of them.
"""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict

from peft_jobs.host.gpus import Device
from peft_jobs.host.prediction import Lengths
from peft_jobs.host.result import Kind, Progress, TrialResult
from peft_jobs.host.uploads import Uploads
from peft_jobs.spec import TrialSpec
from peft_jobs.spec.memory_settings import LadderRung


class Prepared(BaseModel):
    """What an engine knows about a sweep before its first trial (`Engine.prepare`)."""

    model_config = ConfigDict(frozen=True)

    train_rows: int
    """Rows that one epoch of a trial sees, after the subset."""
    baseline: dict[str, float] = {}
    """Validation metrics of what trials begin with: the base without an adapter, or with the saved
    one that they go on from."""
    class_counts: dict[str, int] = {}
    """Training rows of each class, or words of each tag, after the subset."""
    majority: dict[str, float] = {}
    """Validation metrics of the majority class of the training rows, or the error of their mean."""
    slots: int = 1
    """Trials at a time that a host has use for."""
    thread_seconds: dict[int, float] = {}
    """Seconds of a step by threads, of hosts that there is memory for one of for each share of the
    threads; empty where that was not asked for."""
    not_finite: tuple[str, ...] = ()
    """Metrics of the base alone that were NaN or infinite; `baseline` leaves them out."""
    provenance: dict[str, Any] = {}
    contents: dict[str, str] = {}
    """Fingerprints of all that trials of the sweep see, by words: a later launch must find them."""
    leaks: tuple[str, ...] = ()
    """What held-out rows share with those that are trained on, in words."""
    device: Device | None = None
    """What a trial has to itself; None where that cannot be said, as of a base that is spread."""
    lengths: Lengths | None = None
    """Of the rows that trials train on."""


class Job:
    """One attempt of one trial; made by the host, driven by an engine."""

    def __init__(
        self,
        trial: int,
        attempt: int,
        spec: TrialSpec,
        directory: Path,
        checkpoint: Path | None,
        changed: threading.Condition,
        uploads: Uploads | None = None,
        ladder: LadderRung | None = None,
    ) -> None:
        self.trial, self.attempt, self.spec = trial, attempt, spec
        self.ladder = ladder
        """Settings that are known not to fit; of an attempt that starts from no checkpoint."""
        self.directory = directory
        """`attempts/<k>`: the only place this attempt may write to."""
        self.checkpoint = checkpoint
        """Where an earlier attempt left off, or None to start at the first step."""
        self.cancelled: str | None = None
        """Why the engine must stop at its next step: a Kind's value, or `interrupted`, and then it
        leaves a checkpoint."""
        self.checkpoint_requested = False
        """Someone asks for a checkpoint at the next step; the engine takes the request back."""
        self.result: TrialResult | None = None
        self.interrupted = False
        """Stopped without an end: the trial goes on in a later attempt."""
        self.reports: list[tuple[int, Progress]] = []
        self.ended = False
        """The engine has had its last word."""
        self._sequence = 0
        self._changed = changed
        self._uploads = uploads

    def report(self, progress: Progress) -> None:
        """Queue a report; it is kept until a caller acknowledges it.

        A checkpoint is named when it is where other machines find it: perhaps in a later report.
        """
        if self._uploads is not None:
            progress = self._uploads.report(progress, self._report)
        self._report(progress)

    def _report(self, progress: Progress) -> None:
        with self._changed:
            self._sequence += 1
            self.reports.append((self._sequence, progress))
            self._changed.notify_all()

    @property
    def decided(self) -> bool:
        """True once nothing reported is unanswered, or the job is cancelled."""
        return self.cancelled is not None or not self.reports

    def await_decision(self) -> bool:
        """Block until every report is acknowledged; True if the job may go on."""
        with self._changed:
            self._changed.wait_for(lambda: self.decided)
            return self.cancelled is None

    def wait_until(self, ready: Callable[[], bool]) -> None:
        """Block until `ready`, which is asked, under the host's lock, at every change of a job."""
        with self._changed:
            self._changed.wait_for(ready)

    def wake(self) -> None:
        """Have whoever is in `wait_until` ask again; from any thread."""
        with self._changed:
            self._changed.notify_all()

    def stopped(self, **seen: Any) -> TrialResult | None:
        """The result of a cancelled job with what was `seen`; None if it was only interrupted."""
        if self.cancelled not in set(Kind):
            return None
        kind = Kind(self.cancelled)
        return TrialResult(state=kind.state, kind=kind, **seen)

    def end(self, result: TrialResult | None) -> None:
        """The engine's last word: a result, or None for an interruption."""
        with self._changed:
            if self.ended:
                return
            self.ended = True
            self._changed.notify_all()
        if self._uploads is not None:
            self._uploads.end(result, self._tell)
        else:
            self._tell(result)

    def _tell(self, result: TrialResult | None) -> None:
        with self._changed:
            self.result, self.interrupted = result, result is None
            self._changed.notify_all()

    @property
    def told(self) -> bool:
        """Whether the end can be heard by the host's callers."""
        return self.result is not None or self.interrupted


class Inbox(Protocol):
    """Where an engine gets its jobs, in the order they were submitted."""

    def take(self, block: bool = True) -> Job | None:
        """The next job; None when there is none (`block=False`) or the host closes."""


class Engine(Protocol):
    """Runs trials. One thread of the host is in `serve` for as long as the host lives."""

    def prepare(self, spec: TrialSpec, variants: list[TrialSpec]) -> Prepared:
        """Load base and data, check every variant; raises SpecError, DataError."""

    def serve(self, inbox: Inbox) -> None:
        """Run jobs from `inbox`, one or several at a time, until it closes."""

    def status(self) -> dict[str, Any]:
        """What is resident: base, device, memory, threads."""

    def use_threads(self, number: int) -> None:
        """Begin the next trials with so many threads; from any thread."""


def serve_one_at_a_time(inbox: Inbox, run: Callable[[Job], TrialResult | None]) -> None:
    """The `serve` of an engine with one slot; `run` turns a trial's own errors into results."""
    while (job := inbox.take()) is not None:
        job.end(run(job))
