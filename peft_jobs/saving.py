"""When an attempt leaves checkpoints: at rungs, every so many seconds, when asked, at the end."""

import logging
import time
from collections.abc import Callable
from pathlib import Path

from peft_jobs.host.checkpoint import CheckpointState, write
from peft_jobs.host.job import Job

log = logging.getLogger(__name__)


class Saver:
    """Writes the checkpoints of one attempt; deletes none, that is the driver's business."""

    def __init__(self, job: Job, seconds: float | None) -> None:
        """`seconds` between checkpoints; None leaves none at all."""
        self.job, self.seconds = job, seconds
        self.latest: Path | None = None
        """The last one of this attempt."""
        self._since = time.monotonic()

    def due(self) -> bool:
        """Whether one should be left now, at a step that is no rung."""
        if self.seconds is None:
            return False
        return self.job.checkpoint_requested or time.monotonic() - self._since >= self.seconds

    def save(self, state: CheckpointState, tensors: Callable[[], bytes]) -> Path | None:
        """Write one; None if none are left, or the disk refuses: then the trial goes on without."""
        if self.seconds is None:
            return None
        self.job.checkpoint_requested = False
        try:
            self.latest = write(self.job.directory, state, tensors())
        except OSError as error:
            log.warning("no checkpoint at step %d: %s", state.step, error)
            return None
        finally:
            self._since = time.monotonic()
        return self.latest
