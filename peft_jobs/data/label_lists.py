"""Whether lists in a label column are vectors with a 0 or 1 for each class, or name the classes."""

from collections.abc import Sequence
from typing import Any

from peft_jobs.data.sources import Rows
from peft_jobs.errors import DataError
from peft_jobs.spec import SequenceClassificationSpec, TaskSpec
from peft_jobs.tasks.label_values import boolean, flag


def hold_vectors(rows: Rows, column: str, cells: Sequence[list[Any]], spec: TaskSpec) -> bool:
    """Whether the lists of a whole column are vectors; `multi_hot` of the spec says so first.

    They are if all have one length, hold nothing but 0 and 1, and could not be lists of classes:
    one of them has a value twice, or they are booleans or floats. Raises DataError, with both
    readings, where that is open.
    """
    assert isinstance(spec, SequenceClassificationSpec)
    lengths = {len(cell) for cell in cells}
    values = [value for cell in cells for value in cell]
    if spec.multi_hot is not None:
        return _checked(rows, column, lengths) if spec.multi_hot else False
    if not values or any(flag(value) is None for value in values):
        return False
    if any(boolean(value) is not None for value in values):
        return _checked(rows, column, lengths)
    if len(lengths) > 1:
        return False
    repeated = any(len({flag(value) for value in cell}) < len(cell) for cell in cells)
    if repeated or any(isinstance(value, float) for value in values):
        return _checked(rows, column, lengths)
    raise DataError(
        f"{rows.origin}: the lists in column {column!r}, such as {cells[0]}, can be vectors with a "
        "0 or 1 for each class, or lists of the classes 0 and 1: write multi_hot: true for "
        "vectors, multi_hot: false for lists of classes"
    )


def _checked(rows: Rows, column: str, lengths: set[int]) -> bool:
    """True; DataError unless all vectors are of two classes or more."""
    if len(lengths) > 1 or min(lengths) < 2:
        raise DataError(
            f"{rows.origin}: the vectors in column {column!r} must have one length, of at least 2 "
            f"classes, got {', '.join(map(str, sorted(lengths)))}"
        )
    return True
