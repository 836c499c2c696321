"""Files of a driver that cannot be written now are written later: a full disk ends no sweep.

What is in them the study knows, so nothing is lost meanwhile; what is left when the driver ends,
the next one writes.
"""

import logging
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

AGAIN_SECONDS = 5.0


class LateFiles:
    """Writes at once if that can be done, and otherwise again and again, in the order asked."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._tried = clock, 0.0
        self._waiting: dict[str, Callable[[], object]] = {}

    def write(self, what: str, act: Callable[[], object]) -> None:
        """Do `act`, which writes `what`, and may be done again should it raise OSError.

        Nothing overtakes what waits under the same name.
        """
        before = self._waiting.get(what)
        if before is not None:
            self._waiting[what] = lambda: (before(), act())
        else:
            self._try(what, act)

    def again(self) -> None:
        """Try what waits, unless that was done a moment ago."""
        if self._waiting and self._clock() - self._tried >= AGAIN_SECONDS:
            self.finish()

    def finish(self) -> list[str]:
        """Try what waits; what is still not written."""
        for what, act in list(self._waiting.items()):
            self._try(what, act)
        return [*self._waiting]

    def _try(self, what: str, act: Callable[[], object]) -> None:
        self._tried = self._clock()
        try:
            act()
        except OSError as error:
            if what not in self._waiting:
                log.warning("%s cannot be written, will retry: %s", what, error)
            self._waiting[what] = act
        else:
            if self._waiting.pop(what, None) is not None:
                log.warning("%s is written", what)
