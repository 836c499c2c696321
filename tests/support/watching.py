"""Looks again and again at what goes on beside a test."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def watching(look: Callable[[], object], every_seconds: float = 0.2) -> Iterator[None]:
    """Calls `look` in a thread of its own until the block ends."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(every_seconds):
            look()

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
