"""What a task is given of a row: text where it fills templates, structures where it reads them."""

from collections.abc import Callable
from typing import Any

import numpy as np
from datasets import Json, Value

from peft_jobs.data.conversations import columns_of, reader_of
from peft_jobs.data.sources import Rows
from peft_jobs.spec import DataSpec, TaskSpec
from peft_jobs.spec.cells import structure_of, text_of
from peft_jobs.tasks import Row, Task

STRUCTURED = (
    *("task.messages", "task.tools", "task.labels"),
    *("task.tokens", "task.tags", "task.answers"),
)
"""Fields whose column may hold lists or mappings, which text files hold as JSON."""
_SHORT_FLOATS = {"float16": np.float16, "float32": np.float32}


def task_rows(rows: Rows, data: DataSpec, task: Task[Any], spec: TaskSpec) -> Callable[[Row], Row]:
    """The function from a row of `rows` to what `task` is given of it."""
    read = reader_of(data, spec)
    change: dict[str, Callable[[Any], Any]] = {}
    for field, names in columns_of(data, task, spec, rows.dataset.column_names).items():
        for name in names:
            feature = rows.dataset.features.get(name)
            typed = not isinstance(feature, Value) or feature.dtype not in (
                "string",
                "large_string",
            )
            if field == "task.tokens":
                change[name] = _words
            elif field in ("task.messages", "task.tools") and typed and not _is_json(feature):
                change[name] = _without_nulls
            elif field in STRUCTURED:
                change[name] = structure_of
            elif isinstance(feature, Value) and feature.dtype in _SHORT_FLOATS:
                change.setdefault(name, _shortest(_SHORT_FLOATS[feature.dtype]))
    return lambda row: read({k: change[k](v) if k in change else v for k, v in row.items()})


def _is_json(feature: Any) -> bool:
    return isinstance(getattr(feature, "feature", feature), Json)


def _words(cell: Any) -> Any:
    found = structure_of(cell)
    return [text_of(word) for word in found] if isinstance(found, list) else found


def _shortest(kind: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """0.1 in 32 bits is 0.10000000149011612 in 64."""
    return lambda cell: None if cell is None else float(str(kind(cell)))


def _without_nulls(value: Any) -> Any:
    """Arrow gives every mapping all keys of its column; templates ask which are there."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value
