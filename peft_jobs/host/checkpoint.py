"""Checkpoints on disk: folders `checkpoints/step-00000123` of an attempt, whole or not there.

A folder holds `state.json` and, of a trial that trains, `tensors.safetensors`. Both are sealed by
hashes, so that a damaged one is noticed before anything of it is used. What the tensors are is
`training_state`'s matter; this half is light, and engines without tensors share it.
"""

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from peft_jobs import faults
from peft_jobs.errors import Damaged
from peft_jobs.host.result import Metrics, Progress
from peft_jobs.spec.memory_settings import LadderRung
from peft_jobs.storage.attempt_folder import CHECKPOINTS_FOLDER, checkpoint_name
from peft_jobs.storage.files import canonical_json, sha256, whole_folder

log = logging.getLogger(__name__)

STATE = "state.json"
TENSORS = "tensors.safetensors"
_NAME = re.compile(r"step-(\d+)")


class CheckpointState(BaseModel):
    """All of a trial at the end of a step that is not a tensor.

    The order of the data follows from `samples`, masks of dropout from `step`: nothing random is
    kept.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    spec: str
    """Fingerprint of the trial: no other one goes on from here."""
    step: int
    samples: int
    tokens: int
    metrics: Metrics = {}
    """The latest of each name."""
    not_finite: tuple[str, ...] = ()
    evaluated_at: int | None = None
    rungs: tuple[int, ...] = ()
    """Those that are still ahead."""
    losses: tuple[float, ...] = ()
    """Of the steps since the last report."""
    learning_rate: float = 0.0
    """Of the last step."""
    scheduler: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    """Of the trial so far, by phase."""
    reports: tuple[Progress, ...] = ()
    """Made at this step. They are made again by the attempt that goes on from here: the first
    time they may have been lost with the host or the driver."""
    ladder: tuple[LadderRung, ...] = ()
    """How memory had run out by then."""
    tensors: str | None = None
    """sha256 of `tensors.safetensors`; None if there is no such file."""


@dataclass(frozen=True)
class Checkpoint:
    """One that was read and found whole."""

    path: Path
    state: CheckpointState
    tensors: bytes


def write(
    directory: Path, state: CheckpointState, tensors: Callable[[Path], object] | None = None
) -> Path:
    """Write a checkpoint of the attempt in `directory`, whole or not at all; returns its folder.

    `tensors` writes the file of that name, if there is one. A checkpoint of the same step is
    replaced. Raises OSError, and leaves nothing, if the disk refuses.
    """
    target = directory / CHECKPOINTS_FOLDER / checkpoint_name(state.step)
    target.parent.mkdir(parents=True, exist_ok=True)
    with whole_folder(target) as aside:
        digest = None
        if tensors is not None:
            tensors(aside / TENSORS)
            with (aside / TENSORS).open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        content = state.model_copy(update={"tensors": digest}).model_dump(mode="json")
        text = json.dumps({"sha256": _seal(content), "state": content}, allow_nan=False)
        (aside / STATE).write_text(text, encoding="utf-8")
        faults.passing("checkpoint.writing")
    faults.passing("checkpoint.written")
    return target


def read(path: Path, spec: str) -> Checkpoint:
    """The checkpoint in `path`. Raises Damaged if it is torn, damaged, or of another trial."""
    try:
        content = json.loads((path / STATE).read_bytes())
        if _seal(content["state"]) != content["sha256"]:
            raise Damaged(f"{STATE} is not what was written")
        state = CheckpointState.model_validate(content["state"])
        if state.spec != spec:
            raise Damaged("it belongs to a trial with another spec")
        tensors = b"" if state.tensors is None else (path / TENSORS).read_bytes()
    except OSError as error:
        raise Damaged(f"{error.filename}: {error.strerror}") from error
    except (KeyError, TypeError) as error:
        raise Damaged(f"{STATE} is not what was written") from error
    except ValueError as error:  # no JSON, no UTF-8, no such fields; Damaged itself
        raise Damaged(str(error)) from error
    if state.tensors is not None and sha256(tensors) != state.tensors:
        raise Damaged(f"{TENSORS} is not what was written")
    return Checkpoint(path, state, tensors)


def newest_whole(named: Path, attempts: Path, spec: str) -> Checkpoint | None:
    """The checkpoint `named`, or, should it be damaged or gone, the trial's newest whole one of
    that step or before; None, to start at the first step, if there is none.

    `attempts` holds the folders of the trial's attempts. What is wrong is logged as a warning.
    """
    for path in (named, *_earlier(named, attempts)):
        try:
            found = read(path, spec)
        except Damaged as error:
            log.warning("checkpoint %s cannot be used: %s", path, error)
        else:
            log.info("the trial goes on from %s", path)
            return found
    log.warning("no checkpoint is whole: the trial starts at its first step")
    return None


def _earlier(named: Path, attempts: Path) -> Iterator[Path]:
    """Other checkpoints of the trial up to the step of `named`, newest first."""
    last = _step(named)
    if last is None:
        return
    found = [
        (step, path)
        for path in attempts.glob(f"*/{CHECKPOINTS_FOLDER}/step-*")
        if path != named and (step := _step(path)) is not None and step <= last
    ]
    for _, path in sorted(found, reverse=True):
        yield path


def _step(path: Path) -> int | None:
    match = _NAME.fullmatch(path.name)
    return None if match is None else int(match[1])


def _seal(content: Any) -> str:
    return sha256(canonical_json(content))
