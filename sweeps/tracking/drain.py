"""The thread that empties the outbox, and keeps trying when MLflow is away.

mlflow is imported here, in the thread, so that neither the driver's start nor a sweep without
tracking pays for it (about 1.5 s, and 1.5 s more when a new database is laid out).
"""

import math
import threading
import time
from typing import TYPE_CHECKING

from peft_jobs.storage.retry import retry
from sweeps.redact import redact
from sweeps.tracking.destination import Destination, prepare
from sweeps.tracking.outbox import Outbox

if TYPE_CHECKING:
    from sweeps.tracking.delivery import Delivery

GATHER_SECONDS = 0.25  # what arrives within this time goes into one batch


class Drain(threading.Thread):
    """Delivers the outbox's operations until `close`; a daemon, it never keeps a process alive."""

    def __init__(self, outbox: Outbox, destination: Destination) -> None:
        super().__init__(name="mlflow-outbox", daemon=True)
        self._outbox = outbox
        self._destination = destination
        self._arrived = threading.Event()
        self._closing = threading.Event()  # deliver what is left, then end
        self._stopped = threading.Event()  # end now
        self._delivery: Delivery | None = None

    def wake(self) -> None:
        """Say that an operation was put."""
        self._arrived.set()

    def close(self, timeout_seconds: float) -> int:
        """Deliver for at most `timeout_seconds`, then stop; the number of operations left."""
        self._closing.set()
        self._arrived.set()
        self.join(timeout_seconds)
        self._stopped.set()
        return self._outbox.pending()

    def run(self) -> None:
        while not self._stopped.is_set():
            # Whatever a tracking server, a database driver or an object store raises: the sweep
            # goes on, the operation stays in the outbox, and the person is told once.
            delivered = retry(
                self._deliver_some,
                f"MLflow at {self._destination}",
                (Exception,),
                unless=(),
                patience_seconds=math.inf,
                is_wanted=lambda: not self._stopped.is_set(),
                pause=self._pause,
                told=lambda error: redact(f"{type(error).__name__}: {error}"),
            )
            if delivered:
                continue
            if self._closing.is_set():
                return
            self._arrived.wait()
            self._arrived.clear()
            self._closing.wait(GATHER_SECONDS)

    def _deliver_some(self) -> bool:
        self._delivery = self._delivery or _open(self._outbox, self._destination)
        return bool(self._delivery.deliver_some())

    def _pause(self, seconds: float) -> None:
        """Wait, but no longer than a second once the driver waits for us."""
        deadline = time.monotonic() + seconds
        if not self._closing.wait(seconds):
            return
        self._stopped.wait(min(1.0, max(0.0, deadline - time.monotonic())))


def _open(outbox: Outbox, destination: Destination) -> "Delivery":
    prepare(destination)
    from sweeps.tracking.delivery import Delivery  # imports mlflow

    return Delivery(outbox, destination)
