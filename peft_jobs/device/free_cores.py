"""As many computing threads as there are cores free for them, while trials run on a CPU.

OpenMP's threads wait for each other at every operator. Where one of them waits for a core that
others use, all do: with one of two cores busy, two threads make a small model's steps at a tenth of
their rate or less, and one thread makes them at half of it or more.
"""

import logging
import time
from collections.abc import Callable
from pathlib import Path

import psutil

log = logging.getLogger(__name__)

WINDOW_SECONDS = 1.0
"""Between two looks at least."""
MIN_WAITED = 0.5
"""Threads that wait for a core, as a mean over a window, from which there are fewer of them."""
MIN_IDLE = 0.6
"""Idle cores over a window from which there may be more."""
FIRST_CALM, MOST_CALM = 2, 32
"""Such windows in a row before there are; twice as many where the last time was too early."""
TOO_EARLY_SECONDS = 30.0


class FreeCores:
    """The number of threads that a process should compute with, at most `most`."""

    def __init__(
        self,
        most: int,
        waited: Callable[[], dict[str, float]] | None = None,
        idle: Callable[[], float] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`waited` gives for how many seconds each thread has waited for a core, and `idle` for how
        many all cores together have had nothing to do, both since any beginning."""
        self.most = self.number = most
        self._waited, self._idle, self._clock = waited or _waited, idle or _idle, clock
        self._seen: tuple[float, dict[str, float], float] | None = None
        self._calm, self._calm_needed, self._raised = 0, FIRST_CALM, -TOO_EARLY_SECONDS

    def look(self) -> int:
        """The number of threads from now on; costs nothing but once a second."""
        now = self._clock()
        if self._seen is None:
            self._seen = now, self._waited(), self._idle()
        elif (seconds := now - self._seen[0]) >= WINDOW_SECONDS:
            waited, idle = self._waited(), self._idle()
            before = self._seen[1]
            delay = sum(waited[thread] - before[thread] for thread in waited.keys() & before.keys())
            self._judge(delay / seconds, (idle - self._seen[2]) / seconds)
            self._seen = now, waited, idle
        return self.number

    def limit(self, most: int) -> None:
        """Have at most so many from now on; from any thread."""
        self.most, self.number = most, min(self.number, most)

    def begin(self) -> None:
        """Forget the last look: the next one begins a window."""
        self._seen = None

    def _judge(self, waiting: float, idle: float) -> None:
        """`waiting` threads and `idle` cores, as means over a window."""
        if waiting >= MIN_WAITED and self.number > 1:
            early = self._clock() - self._raised < TOO_EARLY_SECONDS
            self._calm_needed = min(MOST_CALM, 2 * self._calm_needed) if early else FIRST_CALM
            self._change(max(1, self.number - round(waiting)))
            return
        if idle < MIN_IDLE or self.number == self.most:
            self._calm = 0
            return
        self._calm += 1
        if self._calm >= self._calm_needed:
            self._raised = self._clock()
            self._change(min(self.most, self.number + int(idle + 1 - MIN_IDLE)))

    def _change(self, number: int) -> None:
        log.info("computing with %d of %d threads", number, self.most)
        self.number, self._calm = number, 0


def _waited() -> dict[str, float]:
    """Seconds for which each thread of this process has waited for a core; empty beside Linux."""
    found = {}
    for file in Path("/proc/self/task").glob("*/schedstat"):
        try:
            found[file.parent.name] = int(file.read_text().split()[1]) / 1e9
        except (OSError, IndexError):  # it has ended, or the kernel does not count
            continue
    return found


def _idle() -> float:
    return float(psutil.cpu_times().idle)
