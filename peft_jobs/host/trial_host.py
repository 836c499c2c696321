"""TrialHost: the slots of one device, behind calls that may be repeated, lost or late.

Plain Python: the inline backend calls it directly, an actor wraps it on a cluster. Every call
carries (trial, attempt); a call with an attempt that is not the current one raises `Fenced`.
"""

import logging
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, wait
from functools import partial
from pathlib import Path
from typing import Any

from peft_jobs.activity import last_moved
from peft_jobs.errors import DeviceLost, Fenced
from peft_jobs.host.job import Engine, Job, Prepared
from peft_jobs.host.messages import Assignment, End, Interrupted, Message, Report
from peft_jobs.host.result import TrialResult
from peft_jobs.host.uploads import Uploads
from peft_jobs.spec import TrialSpec
from peft_jobs.spec.memory_settings import LadderRung
from peft_jobs.storage.object_store import is_url, local_folder

log = logging.getLogger(__name__)

TICK_SECONDS = 0.5


class TrialHost:
    """Runs submitted attempts on an engine in a thread of its own.

    All of the engine's work is done in that thread: OpenMP keeps a pool for every thread that has
    computed, and where the pools together have more threads than there are cores, its threads
    sleep between any two operators instead of spinning (measured: half the speed of small steps).

    `on_change` is called, from any thread, whenever a message may have become available.

    A device that takes no more work ends the host, not its trials: `on_lost` is called, which may
    end the process. Where it does not, `poll` raises DeviceLost for what ran or waited here.
    """

    def __init__(
        self,
        engine: Engine,
        on_change: Callable[[], None] | None = None,
        on_lost: Callable[[], None] | None = None,
    ) -> None:
        self._engine, self._on_lost = engine, on_lost
        self._lost: DeviceLost | None = None
        self._changed = _Condition(on_change)
        self._jobs: dict[int, Job] = {}
        self._queue: deque[Job] = deque()
        self._fetching: set[Job] = set()
        """Those whose checkpoint is on its way here; then they are queued."""
        self._preparing: tuple[Future[Prepared], Callable[[], Prepared]] | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name="trial-host", daemon=True)
        self._thread.start()

    def prepare(
        self,
        spec_json: str,
        variants_json: list[str],
        on_tick: Callable[[], object] = lambda: None,
    ) -> Prepared:
        """See `Engine.prepare`; before the first trial, and `on_tick` is called meanwhile."""
        spec = TrialSpec.model_validate_json(spec_json)
        variants = [TrialSpec.model_validate_json(text) for text in variants_json]
        prepared: Future[Prepared] = Future()
        with self._changed:
            if self._preparing is not None or self._jobs or self._closed:
                raise RuntimeError("a host prepares one sweep at a time, before its first trial")
            self._preparing = prepared, partial(self._engine.prepare, spec, variants)
            self._changed.notify_all()
        while not wait([prepared], TICK_SECONDS).done:
            on_tick()
        return prepared.result()

    def submit(self, assignment: Assignment) -> None:
        """Queue an attempt. The same again does nothing; a newer one replaces the older.

        A host that is closed interrupts it at once.
        """
        trial, attempt = assignment.trial, assignment.attempt
        directory, checkpoint = assignment.directory, assignment.checkpoint
        with self._changed:
            current = self._jobs.get(trial)
            if current is not None:
                if attempt < current.attempt:
                    raise Fenced(trial, attempt, current.attempt)
                if attempt == current.attempt:
                    return
                self._cancel(current, "superseded")
            spec = TrialSpec.model_validate_json(assignment.spec_json)
            start = Path(checkpoint) if checkpoint else None
            uploads = Uploads(directory, local_folder(directory)) if is_url(directory) else None
            rung = assignment.ladder_json
            ladder = None if rung is None else LadderRung.model_validate_json(rung)
            local = local_folder(directory)
            job = Job(trial, attempt, spec, local, start, self._changed, uploads, ladder)
            self._jobs[trial] = job
            if uploads is None:
                self._enqueue(job)
            else:
                self._fetching.add(job)
                ready = partial(self._enqueue, job)
                job.checkpoint = uploads.open(checkpoint, spec.fingerprint(), ready)

    def poll(self, trial: int, attempt: int, after_seq: int) -> Message | None:
        """The first message after `after_seq`, which acknowledges all up to it; None if none yet.

        A lost answer loses nothing: the same call gives the same message again. Raises DeviceLost
        after the last report of a trial that the device was lost under.
        """
        with self._changed:
            job = self._job(trial, attempt)
            before = len(job.reports)
            job.reports[:] = [(seq, report) for seq, report in job.reports if seq > after_seq]
            if len(job.reports) != before:
                self._changed.notify_all()
            if job.reports:
                seq, progress = job.reports[0]
                return Report(seq=seq, progress=progress)
            if job.result is not None:
                return End(result=job.result)
            if job.interrupted and self._lost is not None:
                raise self._lost
            return Interrupted() if job.interrupted else None

    def next_report(
        self, trial: int, attempt: int, after_seq: int, timeout_seconds: float = 10.0
    ) -> Message | None:
        """`poll` that waits for a message for at most `timeout_seconds`."""
        deadline = time.monotonic() + timeout_seconds
        with self._changed:
            while (message := self.poll(trial, attempt, after_seq)) is None:
                if not self._changed.wait(deadline - time.monotonic()):
                    return None
            return message

    def request_cancel(self, trial: int, attempt: int, reason: str) -> bool:
        """Ask the engine to stop the attempt at its next step; True once its slot is free."""
        with self._changed:
            job = self._job(trial, attempt)
            self._cancel(job, reason)
            return job.ended

    def cancel(self, trial: int, attempt: int, reason: str, timeout_seconds: float = 60.0) -> bool:
        """`request_cancel`, then wait until the slot is free; False if that took too long."""
        with self._changed:
            job = self._job(trial, attempt)
            self._cancel(job, reason)
            return self._changed.wait_for(lambda: job.ended, timeout_seconds)

    def checkpoint(self, trial: int, attempt: int) -> None:
        """Ask the engine for a checkpoint at the attempt's next step; a report will name it.

        Nothing comes of it if the engine keeps none, or the attempt ends with that step.
        """
        with self._changed:
            self._job(trial, attempt).checkpoint_requested = True

    def current_attempt(self, trial: int) -> int | None:
        """The attempt of a trial that this host was given last; None for an unknown trial."""
        with self._changed:
            job = self._jobs.get(trial)
            return None if job is None else job.attempt

    def status(self) -> dict[str, Any]:
        """Running and queued trials, and what the engine has resident."""
        with self._changed:
            running = [job.trial for job in self._jobs.values() if not job.ended]
            queued = [job.trial for job in self._queue]
        return {"running": running, "queued": queued, **self._engine.status()}

    def use_threads(self, number: int) -> None:
        """See `Engine.use_threads`."""
        self._engine.use_threads(number)

    def silent_seconds(self) -> float:
        """For how long the engine has not got on though a trial of it could; 0 if none could."""
        with self._changed:
            waiting = {*self._queue, *self._fetching}
            running = (job for job in self._jobs.values() if job not in waiting)
            working = any(job.decided and not job.ended for job in running)
        if not working:
            return 0.0
        return time.monotonic() - max(last_moved(), self._changed.notified)

    def close(self, timeout_seconds: float = 60.0) -> bool:
        """Interrupt everything and stop the engine's thread; True if all has ended in time.

        What attempts leave has then reached the store, if there is one.
        """
        deadline = time.monotonic() + timeout_seconds
        with self._changed:
            self._closed = True
            for job in self._jobs.values():
                self._cancel(job, "interrupted")
            self._changed.notify_all()
            preparing = self._preparing is not None  # which nothing can stop
        if not preparing:
            self._thread.join(timeout_seconds)
        with self._changed:
            stored = self._changed.wait_for(
                lambda: all(job.told for job in self._jobs.values()), deadline - time.monotonic()
            )
        return stored and not self._thread.is_alive()

    def take(self, block: bool = True) -> Job | None:
        """The engine's side (`Inbox`): the next job that nobody has cancelled."""
        with self._changed:
            while True:
                while self._queue:
                    job = self._queue.popleft()
                    if job.cancelled is None:
                        return job
                    job.end(job.stopped())
                if self._closed or not block:
                    return None
                self._changed.wait()

    def _enqueue(self, job: Job) -> None:
        with self._changed:
            self._fetching.discard(job)
            if job.ended:  # while it fetched its checkpoint
                return
            if self._closed:
                job.end(None)
            else:
                self._queue.append(job)
                self._changed.notify_all()

    def _job(self, trial: int, attempt: int) -> Job:
        job = self._jobs.get(trial)
        if job is None:
            raise KeyError(f"trial {trial} was never submitted to this host")
        if job.attempt != attempt:
            raise Fenced(trial, attempt, job.attempt)
        return job

    def _cancel(self, job: Job, reason: str) -> None:
        if job.cancelled is None and not job.ended:
            job.cancelled = reason
            if job in self._queue or job in self._fetching:
                if job in self._queue:
                    self._queue.remove(job)
                job.end(job.stopped())
            self._changed.notify_all()

    def _serve(self) -> None:
        while not self._closed:
            with self._changed:
                self._changed.wait_for(lambda: self._preparing or self._queue or self._closed)
            if self._preparing is not None:
                self._prepare(*self._preparing)
                continue
            try:
                self._engine.serve(self)
            except DeviceLost as error:
                self._lose(error)
            except BaseException as error:  # the thread's edge: nobody above it would hear
                log.exception("the engine failed; its running trials end as bugs")
                result = TrialResult.from_error(error, traceback.format_exc())
                with self._changed:
                    waiting = {*self._queue, *self._fetching}
                    live = [j for j in self._jobs.values() if not j.ended and j not in waiting]
                    if not live and (job := self.take()) is not None:
                        live = [job]  # an engine that cannot even start would fail for ever
                    for job in live:
                        job.end(result)
        with self._changed:
            if self._preparing is not None:  # asked for while the host was closed
                self._preparing[0].set_exception(RuntimeError("the host is closed"))

    def _lose(self, error: DeviceLost) -> None:
        log.critical("%s", error, exc_info=error)
        if self._on_lost is not None:
            self._on_lost()
        with self._changed:
            self._lost, self._closed = error, True
            self._queue.clear()
            for job in self._jobs.values():
                job.end(None)

    def _prepare(self, prepared: Future[Prepared], call: Callable[[], Prepared]) -> None:
        answer: Callable[[], None]
        try:
            answer = partial(prepared.set_result, call())
        except BaseException as error:  # the thread's edge: for the thread that asked
            answer = partial(prepared.set_exception, error)
        with self._changed:
            self._preparing = None
        answer()


class _Condition(threading.Condition):
    """A re-entrant condition that also calls `on_change` when it is notified."""

    def __init__(self, on_change: Callable[[], None] | None) -> None:
        super().__init__(threading.RLock())
        self._on_change = on_change
        self.notified = time.monotonic()
        """When something last changed: an engine may have waited for it."""

    def notify_all(self) -> None:
        self.notified = time.monotonic()
        super().notify_all()
        if self._on_change is not None:
            self._on_change()
