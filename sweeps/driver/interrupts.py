"""SIGINT and SIGTERM end a sweep in good order: the first one asks, the second one insists."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from sweeps.driver.driver import Driver

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def keeping_signals() -> Iterator[None]:
    """Put back, at the end of the block, the handlers that something in it has replaced.

    Outside the main thread, where nobody may replace any, it does nothing.
    """
    if not _is_main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def interrupted_by_signals(driver: Driver) -> Iterator[None]:
    """Within the block the first signal asks the driver to stop.

    The next one raises KeyboardInterrupt. Outside the main thread nothing is changed.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        if driver.stop_requested:
            raise KeyboardInterrupt
        driver.request_stop()

    with keeping_signals():
        if _is_main_thread():
            for number in _SIGNALS:
                signal.signal(number, interrupt)
        yield


@contextlib.contextmanager
def termination_as_interrupt() -> Iterator[None]:
    """Within the block SIGTERM raises KeyboardInterrupt, as SIGINT does."""
    before = signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
