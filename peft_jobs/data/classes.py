"""The classes among the rows of the training source, how its label column is read, and rows as
examples.

All of its rows decide, before hold-out and subset, so that every trial of a sweep has the same
head. The cells of other splits are read in the same way, whatever their file's format.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from peft_jobs.data.class_labels import label_names
from peft_jobs.data.label_lists import hold_vectors
from peft_jobs.data.labels import Form, Labels, is_unscored
from peft_jobs.data.selection import by_mistake, check_columns, told
from peft_jobs.data.sources import Rows, training_rows
from peft_jobs.data.task_rows import task_rows
from peft_jobs.errors import DataError
from peft_jobs.spec import DataSpec, TaskSpec, TrialSpec
from peft_jobs.spec.cells import structure_of
from peft_jobs.tasks import IGNORED, TASKS, Encoder, Example, Row, Task
from peft_jobs.tasks.label_values import NO_LABEL, integer, is_missing, kind_of

_FORMS: dict[str, Form] = {"task.label": "one", "task.labels": "several", "task.tags": "tags"}


def labels_of(data: DataSpec, spec: TaskSpec, task: Task[Any], cache_dir: Path) -> Labels:
    """The classes among the rows of the training source, sorted, and how its labels are read.

    Raises DataError for a missing column or label, for numbers that are no classes, for lists that
    can be read in two ways, and for one class.
    """
    field = task.label_field(spec)
    named = task.named_classes(spec)
    if field is None:
        return Labels(named)
    (column,) = columns = task.columns(spec)[field]
    rows = training_rows(data, cache_dir)
    check_columns(rows, {field: columns})
    own = label_names(rows, task, spec)
    names = named or own
    labels = Labels(names, column, _FORMS[field], numbered=names)
    cells = list(rows.dataset[column])
    if labels.form != "one":
        cells = list(map(structure_of, cells))
        no_list = f"column {column!r} must hold a list"
        _raise(rows, (None if isinstance(cell, list) else no_list for cell in cells))
    if labels.form == "several" and not own and hold_vectors(rows, column, cells, spec):
        labels = _of_vectors(rows, labels, cells)
    elif not names:
        labels = _of_values(rows, labels, cells, spec.head_problem == "single_label_classification")
    _raise(rows, (labels.mistake({column: cell}) for cell in cells))
    if len(labels.classes) < 2:
        raise DataError(
            f"{rows.origin}: column {column!r} holds one class only: {labels.classes[0]!r}"
        )
    return labels


def _raise(rows: Rows, mistakes: Iterable[str | None]) -> None:
    if bad := by_mistake(mistakes):
        raise DataError(told(rows, bad))


def by_class(
    encode: Encoder, rows: Rows, task: Task[Any], spec: TaskSpec, labels: Labels
) -> Encoder:
    """`encode` for `rows` as they were read: it is given their labels as `Labels.of` has them."""
    column, own = labels.column, label_names(rows, task, spec)
    if column is None:
        return encode

    def read_first(row: Row) -> Example | Sequence[Example] | None:
        return encode({**row, column: labels.of(row[column], own)})

    return read_first


def row_encoder(
    spec: TrialSpec, tokenizer: PreTrainedTokenizerBase, rows: Rows, labels: Labels
) -> Encoder:
    """The function from a row of `rows`, as it was read, to its examples.

    Raises SpecError if the tokenizer lacks something; the function raises DataError for a row that
    it cannot encode.
    """
    task = TASKS[spec.task.type]
    encode = task.encoder(tokenizer, spec.task, spec.data.max_length, labels.classes)
    encode = by_class(encode, rows, task, spec.task, labels)
    given = task_rows(rows, spec.data, task, spec.task)
    return lambda row: encode(given(row))


def _of_vectors(rows: Rows, labels: Labels, cells: Sequence[list[Any]]) -> Labels:
    length = len(cells[0])
    if labels.classes and len(labels.classes) != length:
        raise DataError(
            f"{rows.origin}: the vectors in column {labels.column!r} are of {length} classes, and "
            f"{len(labels.classes)} are named: {', '.join(map(str, labels.classes))}"
        )
    classes = labels.classes or tuple(range(length))
    return replace(labels, classes=classes, numbered=classes, form="vector", kind="integer")


def _of_values(rows: Rows, labels: Labels, cells: Sequence[Any], decimals: bool) -> Labels:
    """Of integers, booleans or names, which `decimals` may be; `Labels.mistake` tells the gaps."""
    seen: dict[Any, int] = {}
    for number, cell in enumerate(cells, start=1):
        for label in cell if isinstance(cell, list) else [cell]:
            if not isinstance(label, str | int | float | Decimal | None):
                text = f"column {labels.column!r} must hold names or numbers, got {label!r:.60}"
                raise DataError(f"{rows.origin}, row {number}: {text}")
            if not is_missing(label) and not (labels.form == "tags" and is_unscored(label)):
                seen.setdefault((type(label), label), number)
    values = [label for _, label in seen]
    kind = kind_of(values)
    if kind == "decimal":
        if not decimals:
            raise _decimals(rows, labels, seen)
        kind = "name"
    labels = replace(labels, kind=kind)
    classes = {labels.class_of(value) for value in values}
    if kind == "integer":
        classes -= {IGNORED}
        if classes - {NO_LABEL} == set(range(len(classes) - 1)):
            classes -= {NO_LABEL}
    if not classes and not any(is_missing(cell) for cell in cells):
        marks = " (all are -1 or -100, which say that there is none)" * bool(values)
        raise DataError(f"{rows.origin}: column {labels.column!r} has no label in any row{marks}")
    return replace(labels, classes=tuple(sorted(classes)))


def _decimals(rows: Rows, labels: Labels, seen: dict[Any, int]) -> DataError:
    value, number = next((v, n) for (_, v), n in seen.items() if integer(v) is None)
    remedy = (
        "write problem_type: regression to predict the numbers, or problem_type: "
        "single_label_classification to take each for a class"
        if labels.form == "one"
        else "give integers or names"
    )
    return DataError(
        f"{rows.origin}: column {labels.column!r} holds numbers with decimals, got {value} in row "
        f"{number}: {remedy}"
    )
