"""Calls again, later and later, while a store, a database or a server is away."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 600.0
"""How long a thing may be away: a restart, a failover, a locked file."""
FIRST_PAUSE_SECONDS = 0.2
MAX_PAUSE_SECONDS = 5.0
TOLD_AFTER_SECONDS = 1.0
"""What is back sooner is not worth a line."""

_T = TypeVar("_T")


class GivenUp(ConnectionError):
    """A store was away for too long."""


def retry(
    call: Callable[[], _T],
    what: str = "the store",
    on: tuple[type[Exception], ...] = (OSError,),
    *,
    unless: tuple[type[Exception], ...] = (FileNotFoundError,),
    patience_seconds: float | None = None,
    is_wanted: Callable[[], bool] = lambda: True,
    pause: Callable[[float], object] = time.sleep,
    told: Callable[[Exception], str] = str,
) -> _T | None:
    """What `call` gives, which is made again while it raises one of `on`; None once unwanted.

    It waits by `pause` between two calls, twice as long each time, up to MAX_PAUSE_SECONDS, and
    asks `is_wanted` before each. That `what` is away, and that it is back, is logged once, with the
    error as `told` words it. What says more than absence (`unless`) is raised at once. After
    `patience_seconds` (default PATIENCE_SECONDS) the last error is raised, an OSError as GivenUp.
    """
    patience = PATIENCE_SECONDS if patience_seconds is None else patience_seconds
    begun, seconds, is_away = time.monotonic(), FIRST_PAUSE_SECONDS, False
    while is_wanted():
        try:
            found = call()
        except unless:
            raise
        except on as error:
            gone = time.monotonic() - begun
            if gone > patience and isinstance(error, OSError):
                raise GivenUp(f"{what} was away for {patience:g} s: {error}") from error
            if gone > patience:
                raise
            if not is_away and gone >= TOLD_AFTER_SECONDS:
                is_away = True
                log.warning("%s is away, will retry: %s", what, told(error))
        else:
            if is_away:
                log.warning("%s is back", what)
            return found
        pause(seconds)
        seconds = min(2 * seconds, MAX_PAUSE_SECONDS)
    return None
