"""Labels: the classes of a task's head, and what a cell of the label column says about them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from peft_jobs.tasks import IGNORED, Row
from peft_jobs.tasks.label_values import (
    NO_LABEL,
    Kind,
    boolean,
    flag,
    integer,
    is_missing,
    is_structure,
    spelled,
)

Form = Literal["one", "several", "vector", "tags"]
"""Of a cell: a class, a list of those that hold, a 0 or 1 for each, or a list of words' tags."""
UNSCORED = (NO_LABEL, IGNORED)
"""Numbers that say that there is no label; of tags, that a word does not count."""


@dataclass(frozen=True)
class Labels:
    """The classes of a task's head, and how the cells of its label column are read."""

    classes: tuple[int | str, ...] = ()
    """In the order of the head; () for a task without classes."""
    column: str | None = None
    """That holds them; None if there is no such column, or one for each class."""
    form: Form = "one"
    kind: Kind = "name"
    numbered: tuple[int | str, ...] = ()
    """The class of each number 0, 1, ... in the column, where numbers stand for classes."""
    new_head: bool = False
    """Whether the head that the base brings means other classes."""

    def mistake(self, row: Row) -> str | None:
        """Why the row's label cannot be used, or None."""
        if self.column is None:
            return None
        cell, column = row[self.column], repr(self.column)
        if self.form == "one":
            if is_missing(cell):
                return f"column {column} has no label"
            if is_structure(cell):
                return f"column {column} holds a list or a mapping: task.label is one class"
            return self._no_label([cell])
        if not isinstance(cell, list):
            return None  # the task says so
        if any(is_missing(label) for label in cell):
            return f"the list in column {column} has a gap"
        if self.form == "vector":
            if len(cell) == len(self.numbered) and all(flag(value) is not None for value in cell):
                return None
            return f"column {column} must hold a 0 or 1 for each of {len(self.numbered)} classes"
        if self.form == "several":
            if none := self._no_label(cell):
                return none
            numbers = [integer(label) for label in cell]
            if (self.kind == "integer" or self.numbered) and len(numbers) > len(set(numbers)):
                return f"column {column} holds a number twice in one list of classes"
        return None

    def of(self, cell: Any, own: Sequence[str] = ()) -> Any:
        """The class of a cell, or the list of those that hold; of tags, None for one without.

        `own` are the names that the cell's source itself has for numbers. What is no class stays
        what it is, for the task to refuse.
        """
        if not isinstance(cell, list):
            return self.class_of(cell, own)
        if self.form == "vector":
            return [name for name, value in zip(self.numbered, cell, strict=True) if flag(value)]
        if self.form == "tags":
            return [None if is_unscored(tag) else self.class_of(tag, own) for tag in cell]
        return [self.class_of(label, own) for label in cell]

    def class_of(self, cell: Any, own: Sequence[str] = ()) -> Any:
        """The class of one value, which is no list; `own` as in `of`."""
        if isinstance(cell, str) and cell in self.classes:
            return cell
        if self.kind == "boolean" and (found := boolean(cell)) is not None:
            return spelled(found)
        number = integer(cell)
        if number is not None and (named := own or self.numbered):
            return named[number] if 0 <= number < len(named) else number
        if self.kind == "integer" and number is not None:
            return number
        name = spelled(cell)
        return name if not self.classes or name in self.classes else cell

    def _no_label(self, labels: Sequence[Any]) -> str | None:
        for found in map(integer, labels):
            if found in UNSCORED and not {found, str(found)} & set(self.classes):
                return (
                    f"label {found} in column {self.column!r} says that there is none, as in the "
                    "test splits of GLUE: leave these rows out, or give the classes names in the "
                    "data if it is one"
                )
        return None


def is_unscored(tag: Any) -> bool:
    """Whether a tag says that its word does not count: -100 or -1."""
    return integer(tag) in UNSCORED
