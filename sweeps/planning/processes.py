"""Processes that try steps side by side, and load torch while other things are done."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import forkserver
from typing import Any

Mapped = Callable[..., Iterable[Any]]
"""As `map`."""
MOST = 8
"""Each takes some 300 MB."""


@contextmanager
def processes(number: int) -> Iterator[Mapped]:
    """A block with a `map` whose calls are made in so many processes, at most MOST; with one, here.

    They are forked from one that loads torch once, beginning now. What they print goes to stderr,
    and an interrupt is left to this process.
    """
    if number < 2:
        yield map
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["peft_jobs.prediction.predict"])
    forkserver.ensure_running()
    pool = ProcessPoolExecutor(min(number, MOST), context, _begin)
    try:
        yield pool.map
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _begin() -> None:
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
