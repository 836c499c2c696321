"""A call whose answer is waited for elsewhere."""

from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import TypeVar

_T = TypeVar("_T")


def called(call: Callable[[], _T], thread: str | None = None) -> "Future[_T]":
    """`call()`, now, or in a thread of that name, which does not keep the process alive.

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
