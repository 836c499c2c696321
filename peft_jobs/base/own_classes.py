"""The classes that a base's own head has: a head is kept where they are those of the data.

Names decide, so that the rows of the head keep their meaning whatever the order of the classes in
the data (as transformers' example run_glue.py does). Numbers in the data stand for the rows of a
head that has as many.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from transformers import AutoConfig

from peft_jobs.base.architecture import location, read_config
from peft_jobs.data.labels import Labels
from peft_jobs.spec import ModelSpec, TaskSpec

log = logging.getLogger(__name__)

Names = tuple[int | str, ...]


def with_own_classes(labels: Labels, model: ModelSpec, task: TaskSpec) -> Labels:
    """`labels` in the order of the base's own head, where that has the same classes.

    The data's spelling is kept. If one class of a row is to be found, the head may have more
    classes than the data. Otherwise the head is drawn anew, which is logged. Raises SpecError.
    """
    if not (own := _own_classes(model, task)):
        return labels
    if not labels.classes:
        if task.num_labels not in (None, len(own)):
            log.warning(
                "model %s: its own head has %d outputs (%s), and %d is wanted: its head is drawn "
                "anew",
                *(model.name_or_path, len(own), _shown(own), task.num_labels),
            )
        return labels
    may_have_more = task.head_problem != "multi_label_classification"
    if (named := _in_order(labels.classes, own, may_have_more)) is not None:
        return replace(labels, classes=named)
    counted: Names = tuple(range(len(own)))
    unnamed = own == tuple(f"LABEL_{number}" for number in counted)
    if labels.classes == counted:
        return labels if unnamed else replace(labels, classes=own, numbered=own)
    if unnamed and labels.classes == labels.numbered and len(own) == len(labels.classes):
        return labels
    log.warning(
        "model %s: its own classes (%s) are not those of the data (%s): its head is drawn anew",
        model.name_or_path,
        _shown(own),
        _shown(labels.classes),
    )
    return replace(labels, new_head=True)


def _own_classes(model: ModelSpec, task: TaskSpec) -> tuple[str, ...]:
    """The names of the rows of the checkpoint's head, () if it has none for the task."""
    read_config(model, task)  # raises for what is no model for the task
    config = AutoConfig.from_pretrained(
        location(model), revision=model.revision, trust_remote_code=False
    )
    head = task.AUTO_CLASS.removeprefix("AutoModel")
    if not any(name.endswith(head) for name in config.architectures or (head,)):
        return ()
    names: Any = config.id2label
    return tuple(str(names[number]) for number in sorted(names))


def _in_order(classes: Names, own: Sequence[str], may_have_more: bool) -> Names | None:
    """The classes as `own` orders them, with those that only `own` has; None if it lacks some."""
    for spell in (str, lambda name: str(name).casefold()):
        spelled = {spell(name): name for name in classes}
        rows = [spell(name) for name in own]
        unique = len(spelled) == len(classes) and len(set(rows)) == len(own)
        if unique and spelled.keys() <= set(rows) and (may_have_more or len(own) == len(classes)):
            return tuple(spelled.get(row, name) for row, name in zip(rows, own, strict=True))
    return None


def _shown(names: Sequence[int | str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(map(str, names[:5])) + more
