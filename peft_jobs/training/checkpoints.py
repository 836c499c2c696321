"""When an attempt leaves a checkpoint, and where it starts: at a checkpoint, or the first step."""

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import nn

from peft_jobs.device.host_copies import HostCopies
from peft_jobs.errors import Damaged
from peft_jobs.host.checkpoint import CheckpointState, newest_whole, write
from peft_jobs.host.job import Job
from peft_jobs.training.training_state import Tensors, parse, restore_model, write_tensors
from peft_jobs.training.writer import Writer

log = logging.getLogger(__name__)


MAX_SHARE = 0.03
"""Of the time of the thread that trains, what checkpoints between rungs may take."""


@dataclass
class Pace:
    """How many trials of an engine share the thread that trains, and with it MAX_SHARE."""

    num_trials: int = 1


class Saver:
    """Leaves the checkpoints of one attempt, one at a time; deletes none, that is the driver's
    business.

    The thread that trains copies what is to be written, and the writer's writes it.
    """

    def __init__(
        self,
        job: Job,
        seconds: float | None,
        writer: Writer | None = None,
        pace: Pace | None = None,
    ) -> None:
        """`seconds` between checkpoints, more where they would cost more than MAX_SHARE; 0 leaves
        one at every step, which then waits for it; None leaves none at all."""
        self.job, self.seconds = job, seconds
        self._writer, self._pace = writer or Writer(), pace or Pace()
        self.latest: Path | None = None
        """The last whole one of this attempt."""
        self._since = time.monotonic()
        self._cost = 0.0
        """Seconds that the last one has taken of the thread that trains."""
        self._pending: _Pending | None = None

    @property
    def is_busy(self) -> bool:
        """Whether there is one that was begun and not taken."""
        return self._pending is not None

    @property
    def is_done(self) -> bool:
        """Whether there is one that may be taken without waiting."""
        return self._pending is not None and self._pending.path.done()

    def due(self) -> bool:
        """Whether one should be left now, at a step that is no rung."""
        if self.seconds is None or self.is_busy:
            return False
        interval = self.seconds and max(
            self.seconds, self._pace.num_trials * self._cost / MAX_SHARE
        )
        return self.job.checkpoint_requested or time.monotonic() - self._since >= interval

    def begin(self, state: CheckpointState, copies: Callable[[], HostCopies]) -> None:
        """Copy what is to be written now; nothing else may be pending."""
        assert self._pending is None
        self.job.checkpoint_requested = False
        held = copies()
        act = partial(_write, self.job.directory, state, held)
        self._pending = _Pending(state.step, held, self._writer.write(act, self.job.wake))

    def take(self) -> Path | None:
        """The one that was begun, whole, which is waited for; None if the disk refuses, or none
        was: then the trial goes on without."""
        pending, self._pending = self._pending, None
        if pending is None:
            return None
        try:
            self.latest = pending.path.result()
        except OSError as error:
            log.warning("no checkpoint at step %d: %s", pending.step, error)
            return None
        finally:
            self._since, self._cost = time.monotonic(), pending.copies.seconds
        return self.latest


@dataclass(frozen=True)
class _Pending:
    """A checkpoint that is being written."""

    step: int
    copies: HostCopies
    path: Future[Path]


def _write(directory: Path, state: CheckpointState, copies: HostCopies) -> Path:
    return write(directory, state, partial(write_tensors, copies.read()))


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
