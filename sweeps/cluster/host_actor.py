"""The actor around a `TrialHost`: one per GPU, or one per node without GPUs.

Async, so that hundreds of waiting proxies block nobody; training runs in the host's own thread.
"""

import asyncio
import os
import time
from typing import Any

from peft_jobs.engines import load_engine
from peft_jobs.host import Message, TrialHost

LONG_POLL_SECONDS = 10.0


class HostActor:
    """See `TrialHost` for the calls' meaning; everything that crosses the wire is plain JSON."""

    def __init__(self, engine: str, options: dict[str, Any], environment: dict[str, str]) -> None:
        # Ray gives an actor without CPUs OMP_NUM_THREADS=1; the engine sets its own threads.
        os.environ.update(environment)
        os.environ.pop("OMP_NUM_THREADS", None)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._news: asyncio.Event | None = None
        self._started = time.time()
        self._host = TrialHost(load_engine(engine, options), on_change=self._on_change)

    async def prepare(self, spec_json: str, variants_json: list[str]) -> dict[str, Any]:
        prepared = await asyncio.to_thread(self._host.prepare, spec_json, variants_json)
        return prepared.model_dump(mode="json")

    async def submit(
        self, trial: int, attempt: int, spec_json: str, directory: str, checkpoint: str | None
    ) -> None:
        self._host.submit(trial, attempt, spec_json, directory, checkpoint)

    async def next_report(self, trial: int, attempt: int, after_seq: int) -> Message | None:
        """The next message, or None after LONG_POLL_SECONDS without one."""
        deadline = time.monotonic() + LONG_POLL_SECONDS
        while True:
            news = self._event()  # taken before looking: a change in between sets this one
            message = self._host.poll(trial, attempt, after_seq)
            if message is not None:
                return message
            try:
                await asyncio.wait_for(news.wait(), max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                return None

    async def request_cancel(self, trial: int, attempt: int, reason: str) -> bool:
        return self._host.request_cancel(trial, attempt, reason)

    async def current_attempt(self, trial: int) -> int | None:
        return self._host.current_attempt(trial)

    async def status(self) -> dict[str, Any]:
        """Slots, queue and engine; pid and seconds of life tell hosts apart."""
        own = {"pid": os.getpid(), "seconds": time.time() - self._started}
        return {**own, **self._host.status()}

    async def close(self) -> bool:
        return await asyncio.to_thread(self._host.close)

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
