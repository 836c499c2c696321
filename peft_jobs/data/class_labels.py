"""Labels that a data set holds as numbers and names itself (ClassLabel): a row has them by name.

Names, and not numbers, are what the splits share: each has the numbers of its own list.
"""

from collections.abc import Sequence
from typing import Any

from datasets import ClassLabel

from peft_jobs.data.sources import Rows
from peft_jobs.spec import TaskSpec
from peft_jobs.tasks import Encoder, Example, Row, Task


def label_names(rows: Rows, task: Task[Any], spec: TaskSpec) -> tuple[str, ...]:
    """The data set's names for the numbers in its label column, one or a list of them in each row;
    () if it has none."""
    feature = rows.dataset.features.get(_column(task, spec))
    feature = getattr(feature, "feature", feature)
    return tuple(feature.names) if isinstance(feature, ClassLabel) else ()


def by_name(
    encode: Encoder, rows: Rows, task: Task[Any], spec: TaskSpec, names: Sequence[str]
) -> Encoder:
    """`encode` for `rows` that hold numbers: their own, or where they name none those of `names`.

    A number without a name stays what it is, as -1 does where a label is missing: no class.
    """
    known: dict[Any, str] = dict(enumerate(label_names(rows, task, spec) or names))
    column = _column(task, spec)
    if not known or column is None:
        return encode

    def named(row: Row) -> Example | Sequence[Example] | None:
        cell = row[column]
        found = [known.get(n, n) for n in cell] if isinstance(cell, list) else known.get(cell, cell)
        return encode({**row, column: found})

    return named


def _column(task: Task[Any], spec: TaskSpec) -> str | None:
    field = task.label_field(spec)
    return None if field is None else task.columns(spec)[field][0]
