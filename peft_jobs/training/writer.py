"""Writer: the thread that writes what trials leave, one thing after the other.

So a trial's end, which is told by this thread too, follows what the trial has left before.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class Writer:
    """Of one engine. Its thread begins with the first thing that is to be written."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._unheard: list[Future[None]] = []

    def write(self, act: Callable[[], T], when_done: Callable[[], None]) -> Future[T]:
        """What `act` will give, or raise; `when_done` is called, in the thread, after that."""
        future = self._thread.submit(act)
        future.add_done_callback(lambda _: when_done())
        return future

    def tell(self, act: Callable[[], None]) -> None:
        """Have `act` called after all that is to be written by now; `check` raises its errors."""
        self._unheard.append(self._thread.submit(act))

    def check(self) -> None:
        """Raise what an `act` of `tell` has raised."""
        done = [future for future in self._unheard if future.done()]
        self._unheard = [future for future in self._unheard if future not in done]
        for future in done:
            future.result()

    def finish(self) -> None:
        """Wait for all of it, and `check`."""
        self._thread.submit(lambda: None).result()
        self.check()
