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
    features = {
        name: feature
        for name, feature in rows.dataset.features.items()
        if any(kind in repr(feature) for kind in _SHORT_FLOATS)
    }

    def of_task(row: Row) -> Row:
        typed = {k: _shortened(v, features[k]) if k in features else v for k, v in row.items()}
        return read({k: change[k](v) if k in change else v for k, v in typed.items()})

    return of_task


def _is_json(feature: Any) -> bool:
    return isinstance(getattr(feature, "feature", feature), Json)


def _words(cell: Any) -> Any:
    found = structure_of(cell)
    return [text_of(word) for word in found] if isinstance(found, list) else found


def _shortened(value: Any, feature: Any) -> Any:
    """With the floats of 16 and 32 bits in it as those of their shortest text: 0.1 in 32 bits is
    0.10000000149011612 in 64."""
    if isinstance(feature, Value) and value is not None:
        kind = _SHORT_FLOATS.get(feature.dtype)
        return value if kind is None else float(str(kind(value)))
    if isinstance(value, dict) and isinstance(feature, dict):
        return {key: _shortened(item, feature.get(key)) for key, item in value.items()}
    item = feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)
    return [_shortened(v, item) for v in value] if isinstance(value, list) else value


def _without_nulls(value: Any) -> Any:
    """Arrow gives every mapping all keys of its column; templates ask which are there."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value
