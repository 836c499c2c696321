"""A store that is away is asked again, for a while."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 600.0

_T = TypeVar("_T")


class GivenUp(ConnectionError):
    """A store was away for too long."""


def patiently(
    call: Callable[[], _T],
    is_wanted: Callable[[], bool] = lambda: True,
    pause: Callable[[float], object] = time.sleep,
) -> _T | None:
    """`call()`, tried again while the store is away; None once it is not wanted any more.

    Raises FileNotFoundError at once and GivenUp after PATIENCE_SECONDS.
    """
    deadline, seconds, told = time.monotonic() + PATIENCE_SECONDS, 0.2, False
    while is_wanted():
        try:
            return call()
        except FileNotFoundError:
            raise
        except OSError as error:
            if time.monotonic() > deadline:
                raise GivenUp(f"the store was away for {PATIENCE_SECONDS:g} s: {error}") from error
            if not told and seconds > 1:
                told = True
                log.warning("the store is away, will retry: %s", error)
        pause(seconds)
        seconds = min(2 * seconds, 5.0)
    return None
