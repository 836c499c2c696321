"""Runs a call, perhaps in a thread, whose answer is taken later and elsewhere."""

from collections.abc import Callable
from concurrent.futures import Future, wait
from threading import Thread
from typing import TypeVar

_T = TypeVar("_T")


def future_of(call: Callable[[], _T], thread: str | None = None) -> "Future[_T]":
    """A future of `call()`, which is made now, or in a daemon thread of that name.

    What it raises is raised where the answer is taken.
    """
    future: Future[_T] = Future()

    def resolve() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    if thread is None:
        resolve()
    else:
        Thread(target=resolve, name=thread, daemon=True).start()
    return future


def while_ticking(call: Callable[[], _T], tick: Callable[[], object], thread: str) -> _T:
    """`call()`, in a thread, because it may take long; `tick` is called once a second meanwhile."""
    done = future_of(call, thread=thread)
    while not wait([done], 1.0).done:
        tick()
    return done.result()
