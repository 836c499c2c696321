"""Runs a call, perhaps in a thread, whose answer is taken later and elsewhere."""

from collections.abc import Callable
from concurrent.futures import Future
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
