"""Labels that a data set holds as numbers and names itself (ClassLabel): a row has them by name.

Names, and not numbers, are what the splits share: each has the numbers of its own list.
"""

from typing import Any

from datasets import ClassLabel

from peft_jobs.data.sources import Rows
from peft_jobs.spec import TaskSpec
from peft_jobs.tasks import Task


def label_names(rows: Rows, task: Task[Any], spec: TaskSpec) -> tuple[str, ...]:
    """The data set's names for the numbers in its label column, one or a list of them in each row;
    () if it has none, or if the spec names them."""
    if task.named_classes(spec):
        return ()
    feature = rows.dataset.features.get(_column(task, spec))
    feature = getattr(feature, "feature", feature)
    return tuple(feature.names) if isinstance(feature, ClassLabel) else ()


def _column(task: Task[Any], spec: TaskSpec) -> str | None:
    field = task.label_field(spec)
    return None if field is None else task.columns(spec)[field][0]
