"""Where a run starts: at a checkpoint with everything it holds, or at the first step."""

import logging
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from peft_jobs.host.checkpoint import CheckpointState, Damaged, newest_whole
from peft_jobs.host.job import Job
from peft_jobs.training_state import Tensors, parse, restore_model

log = logging.getLogger(__name__)


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
