"""What a trial begins with, before its first step: checked, and measured, before there is a trial.

That is the base alone, or the base with the saved adapter that the trial goes on from.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datasets import Dataset

from peft_jobs.base.architecture import location
from peft_jobs.base.heads import fresh_modules
from peft_jobs.base.loading import Base
from peft_jobs.data.tokenized import TokenizedData
from peft_jobs.errors import OutOfMemory, SpecError
from peft_jobs.evaluation.scoring import score
from peft_jobs.methods import METHODS
from peft_jobs.methods.continuation import holds
from peft_jobs.methods.setting import Setting
from peft_jobs.spec import ModelSpec, TrialSpec
from peft_jobs.spec.adapters import saved_adapter
from peft_jobs.storage.attempt_folder import LABELS_FILE, read_labels
from peft_jobs.storage.saved_adapter import SavedAdapter
from peft_jobs.training.counts import Counts
from peft_jobs.training.oom_ladder import OomLadder

log = logging.getLogger(__name__)


def baseline(base: Base, spec: TrialSpec, data: TokenizedData) -> dict[str, float]:
    """Validation metrics of what the trial begins with; {} where a part of it is new.

    Raises SpecError if memory is too small for them.
    """
    saved = None if spec.adapter.source is None else saved_adapter(spec.adapter)
    if any(saved is None or not holds(saved, name) for name in fresh_modules(base.model)):
        return {}
    try:
        with _begun(base, spec, data.train) as model:
            return OomLadder(spec, base.device).measured(
                Counts(), lambda smaller: score(model, base, smaller, data.validation)
            )
    except OutOfMemory as error:
        what = "the base must be evaluated without an adapter"
        if saved is not None:
            what = "the saved adapter must be evaluated as it is"
        raise SpecError(
            f"{what} before the first trial: {error}; lower data.max_length or quantize the base"
        ) from error


def check_continues(setting: Setting, data: TokenizedData) -> None:
    """Put the saved adapter of a trial on its base, and take it off again.

    Raises SpecError if its shapes do not fit, or its classes are others than those of the data.
    Logs a warning where it was trained on another base, or does not name its classes.
    """
    saved = setting.saved
    assert saved is not None
    trained_on, model = saved.settings.get("base_model_name_or_path"), setting.spec.model
    if isinstance(trained_on, str) and trained_on and not _is_same(trained_on, model):
        log.warning(
            "adapter.from: %s was trained on the base %s, and goes on on %s",
            *(saved.folder, trained_on, model.name_or_path),
        )
    if data.classes and any(holds(saved, name) for name in setting.whole):
        _check_classes(saved, [str(name) for name in data.classes])
    with _begun(setting.base, setting.spec, data.train):
        pass


def _check_classes(saved: SavedAdapter, classes: list[str]) -> None:
    shown = ", ".join(classes[:8])
    try:
        names = read_labels(saved.folder)
    except (OSError, ValueError, TypeError) as error:
        path = saved.folder / LABELS_FILE
        raise SpecError(f"adapter.from: {path} cannot be read: {error}") from error
    if not names:
        log.warning(
            "adapter.from: %s has no %s; its classes are taken to be those of the data in their "
            "order (%s)",
            *(saved.folder, LABELS_FILE, shown),
        )
    elif names != classes:
        raise SpecError(
            f"adapter.from: the classes of {saved.folder} are {', '.join(names[:8])}, and those of "
            f"the data {shown}: they must be the same, in the same order"
        )


@contextmanager
def _begun(base: Base, spec: TrialSpec, rows: Dataset) -> Iterator[Any]:
    """The model of a trial's first step for as long as the block lasts."""
    if spec.adapter.source is None:
        yield base.model
        return
    method = METHODS[spec.adapter.method]
    model = method.attach(base, spec, rows=rows)
    try:
        yield model
    finally:
        method.detach(model)


def _is_same(name: str, model: ModelSpec) -> bool:
    """Whether a base's name in an adapter's settings is that of `model`."""
    here = location(model)
    return name in (here, model.name_or_path) or Path(name).resolve() == Path(here).resolve()
