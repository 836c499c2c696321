"""The actor around a `TrialHost`: one per GPU, or one per node without GPUs.

Async, so that hundreds of waiting proxies block nobody; training runs in the host's own thread.

Each proxy imports this module with the host's handle: what only a host needs, it imports itself.
"""

import asyncio
import contextlib
import logging
import os
import platform
import time
from pathlib import Path
from typing import Any

import psutil

from peft_jobs import Fenced, SpecError, faults
from peft_jobs.activity import stage

LONG_POLL_SECONDS = 10.0
MARKER_SECONDS = 20.0
"""How long a new host looks for the sweep's storage."""
CLAIM_SECONDS = 5.0
"""How long a place is kept free for a trial that must run alone and was last heard of."""


class HostActor:
    """See `TrialHost` for the calls' meaning; everything that crosses the wire is plain JSON."""

    def __init__(
        self,
        engine: str,
        options: dict[str, Any],
        gpus: str | None,
        marker: tuple[str, str] | None = None,
    ) -> None:
        """`gpus` are a NodeSlot's, `marker` is of `SweepFolder.write_shared_marker`.

        Raises SpecError if this machine does not see the marker.
        """
        from peft_jobs.engines import load_engine
        from peft_jobs.host.trial_host import TrialHost

        self._nicer_by = _go_first()
        if marker is not None:
            _check_shared_marker(*marker)
        if gpus is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = _visible(gpus)
        # Ray gives an actor without CPUs OMP_NUM_THREADS=1; the engine sets its own threads.
        os.environ.pop("OMP_NUM_THREADS", None)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._news: asyncio.Event | None = None
        self._started = time.time()
        self._asked: dict[int, float] = {}
        """When a proxy last asked about each trial."""
        self._claim: tuple[int, float] | None = None
        """The trial that runs or waits to run alone here, and until when it is waited for."""
        faults.passing("host.starting")
        self._host = TrialHost(load_engine(engine, options), self._on_change, _end_process)

    async def prepare(self, spec_json: str, variants_json: list[str]) -> dict[str, Any]:
        faults.passing("host.preparing")
        prepared = await asyncio.to_thread(self._host.prepare, spec_json, variants_json)
        return prepared.model_dump(mode="json")

    async def may_enter(self, trial: int, alone: bool) -> bool:
        """Whether `submit` would take it now."""
        return self._may_enter(trial, alone)

    async def submit(self, assignment: dict[str, Any], alone: bool = False) -> bool:
        """Queue an attempt; False if it has to ask again, because it or another must run alone.

        `assignment` are the fields of one.
        """
        from peft_jobs.host.messages import Assignment

        given = Assignment(**assignment)
        if not self._may_enter(given.trial, alone):
            return False
        self._asked[given.trial] = time.monotonic()
        self._host.submit(given)
        return True

    async def next_report(self, trial: int, attempt: int, after_seq: int) -> dict[str, Any] | None:
        """The next message as JSON values, or None after LONG_POLL_SECONDS without one."""
        self._asked[trial] = time.monotonic()
        deadline = time.monotonic() + LONG_POLL_SECONDS
        while True:
            news = self._event()  # taken before looking: a change in between sets this one
            message = self._host.poll(trial, attempt, after_seq)
            if message is not None:
                return message.model_dump(mode="json")
            try:
                await asyncio.wait_for(news.wait(), max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                return None

    async def request_cancel(self, trial: int, attempt: int, reason: str) -> bool:
        return self._host.request_cancel(trial, attempt, reason)

    async def checkpoint(self, trial: int, attempt: int) -> None:
        self._host.checkpoint(trial, attempt)

    async def checkpoint_all(self) -> None:
        """Ask for a checkpoint of every trial that runs here: this node is about to go."""
        for trial in self._host.status()["running"]:
            attempt = self._host.current_attempt(trial)
            if attempt is not None:
                with contextlib.suppress(Fenced):
                    self._host.checkpoint(trial, attempt)

    async def current_attempt(self, trial: int) -> int | None:
        return self._host.current_attempt(trial)

    async def status(self) -> dict[str, Any]:
        """Slots, queue and engine; pid and seconds of life tell hosts apart."""
        own = {"pid": os.getpid(), "seconds": time.time() - self._started}
        return {**own, **self._host.status()}

    async def pulse(self, trials: list[int]) -> dict[str, Any]:
        """`TrialHost.silent_seconds`, and the seconds since a proxy asked about each of `trials`
        that was here; the pid tells this process from its successor."""
        now, asked = time.monotonic(), self._asked
        return {
            "pid": os.getpid(),
            "silent_seconds": self._host.silent_seconds(),
            "unheard_seconds": {trial: now - asked[trial] for trial in trials if trial in asked},
        }

    async def use_threads(self, number: int) -> None:
        self._host.use_threads(number)

    async def nicer_by(self) -> int:
        """How much nicer than its node's raylet this host has to be, and 0 if it is not."""
        return self._nicer_by

    async def stage(self) -> str:
        """What the work is at."""
        return stage()

    async def cancel_trial(self, trial: int, reason: str) -> None:
        """`request_cancel` of whatever attempt of a trial is here, if any."""
        attempt = self._host.current_attempt(trial)
        if attempt is not None:
            self._host.request_cancel(trial, attempt, reason)

    async def close(self) -> bool:
        return await asyncio.to_thread(self._host.close)

    def _may_enter(self, trial: int, alone: bool) -> bool:
        status = self._host.status()
        live = {*status["running"], *status["queued"]}
        if trial in live:
            return True
        if self._claim is not None and self._claim[0] != trial:
            claimant, until = self._claim
            if claimant in live or time.monotonic() < until:
                return False
        self._claim = (trial, time.monotonic() + CLAIM_SECONDS) if alone else None
        return not (alone and live)

    def _event(self) -> asyncio.Event:
        if self._news is None:
            self._loop, self._news = asyncio.get_running_loop(), asyncio.Event()
        return self._news

    def _on_change(self) -> None:
        """Called by the host from any thread."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        news, self._news = self._news, asyncio.Event()
        if news is not None:
            news.set()


def _go_first() -> int:
    """Be no nicer than the node's raylet, where this process may; otherwise by how much it is.

    Ray 2.60 starts its workers at 15 (`RAY_worker_niceness`): a host yields to everything else, and
    where one of its OpenMP threads is starved, the others wait for that one at every operator.
    Niceness is a thread's, and new threads have that of the one that starts them.
    """
    raylet = psutil.Process(os.getppid()).nice()
    if os.nice(0) > raylet:
        for thread in psutil.Process().threads():
            with contextlib.suppress(PermissionError, ProcessLookupError):
                os.setpriority(os.PRIO_PROCESS, thread.id, raylet)
    return max(0, os.nice(0) - raylet)


def _end_process() -> None:
    """A death of the host: its trials go on in the process that Ray starts in its place."""
    logging.shutdown()
    os._exit(1)


def _check_shared_marker(location: str, text: str) -> None:
    """A network's file may be seen late, and a store that is away is waited for."""
    from peft_jobs.storage.retry import retry

    deadline = time.monotonic() + MARKER_SECONDS
    while (found := retry(lambda: _read(location))) != text:
        if time.monotonic() > deadline:
            seen = "another machine's file" if found else "nothing"
            raise SpecError(
                f"storage: must be a path that all nodes share, or an object store's URL that all "
                f"reach; {platform.node()} looked for the sweep's file {location} and found {seen}"
            )
        time.sleep(0.5)


def _read(location: str) -> str:
    from peft_jobs.storage import object_store

    if object_store.is_url(location):
        return object_store.read(location) or ""
    return Path(location).read_text("utf-8") if Path(location).exists() else ""


def _visible(gpus: str) -> str:
    """CUDA's numbers for GPUs of this node, of which its raylet may have been shown only some."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not shown:
        return gpus
    return ",".join(shown.split(",")[int(gpu)] for gpu in gpus.split(","))
