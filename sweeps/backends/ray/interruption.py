"""How Tune's loop ends when the driver is asked to stop."""

import time
from typing import Any

from ray.tune import Stopper

from sweeps.backends.ray.bridge import Bridge

LAST_WORD_SECONDS = 20.0


class Interruption(Stopper):
    """Ends Tune's loop once the driver is asked to stop and the trials have said their last word.

    That is a checkpoint, from which the next launch goes on; hosts that do not answer are not
    waited for longer than LAST_WORD_SECONDS.
    """

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge
        self._deadline: float | None = None

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        driver = self._bridge.driver
        if not driver.stop_requested:
            return False
        if self._deadline is None:
            self._deadline = time.monotonic() + LAST_WORD_SECONDS
            self._bridge.fleet.interrupt()
        return not driver.running or time.monotonic() > self._deadline
