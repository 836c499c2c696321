"""Ctrl-C and SIGTERM end a sweep the same way: as a KeyboardInterrupt in the main thread.

Ray takes both signals over: SIGTERM when it starts (Ray 2.60, `ray._private.node`), SIGINT while
Tune fits (`ray.tune.tune`, where the first one ends the fit in good order). So both are taken back
when that has happened, and Tune's handler is called by ours.
"""

import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """A context manager; `on_stop` is called, once, before the interrupt is raised."""

    def __init__(self, on_stop: Callable[[], None]) -> None:
        self._on_stop = on_stop
        self._stopping = False
        self._before: dict[signal.Signals, Any] = {}
        self._tune: Any = None

    def __enter__(self) -> "Interrupts":
        self._before = {number: signal.getsignal(number) for number in _SIGNALS}
        self.take_back()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def take_back(self) -> None:
        """Put our handlers in place again; a SIGINT handler that Tune has set is called by ours."""
        current = signal.getsignal(signal.SIGINT)
        if self._stopping or current == self._interrupt:
            return
        self._tune = current if current != self._before[signal.SIGINT] else None
        signal.signal(signal.SIGINT, self._interrupt)
        signal.signal(signal.SIGTERM, self._terminate)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        again, self._stopping = self._stopping, True
        if not again:
            self._on_stop()
            if callable(self._tune):
                self._tune(number, frame)  # it ends the fit; the next Ctrl-C does not wait for it
                signal.signal(signal.SIGINT, self._interrupt)
                return
        raise KeyboardInterrupt

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        signal.raise_signal(signal.SIGINT)
