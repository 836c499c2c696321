"""When an attempt leaves a checkpoint, and where it starts: at a checkpoint, or the first step."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from peft_jobs.errors import Damaged
from peft_jobs.host.checkpoint import CheckpointState, newest_whole, write
from peft_jobs.host.job import Job
from peft_jobs.training.training_state import Tensors, parse, restore_model

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


@dataclass(frozen=True)
class Start:
    """A whole checkpoint, read."""

    path: Path
    state: CheckpointState
    tensors: Tensors


def find_start(job: Job, named: Path | None) -> Start | None:
    """The start that the checkpoint `named` gives, or an earlier one of the trial if it is damaged;
    None for the first step."""
    if named is None:
        return None
    found = newest_whole(named, job.directory.parent, job.spec.fingerprint())
    return None if found is None else Start(found.path, found.state, parse(found.tensors))


def restored(model: nn.Module, start: Start | None) -> Start | None:
    """`start`, with its values now in `model`; None, with a warning, if that has other ones."""
    if start is not None:
        try:
            restore_model(model, start.tensors)
        except Damaged as error:
            log.warning("checkpoint %s cannot be used: %s", start.path, error)
            return None
    return start
