"""Per-row scores: what an evaluation has found of each example, kept as a small Parquet file.

`pandas.read_parquet(path)` reads it. Columns:

row            number of the example's row in its source, from 1; a long row has several examples
loss_sum       natural log-likelihood lost over `count` supervised tokens, words or rows
count
num_bytes      of a text: UTF-8 bytes behind the supervised tokens
predicted      of classes: their numbers, in the order of the adapter's `labels.json`; of several
actual         classes a 0 or 1 for each, of tags a list of the words'
correct_spans, found_spans, true_spans    of tags
output, target                            of numbers that are predicted
key, text, logit, none_logit, answers     of answers in a context: the best of the example's window;
                                          equal rows have equal keys
answer, reference                         of rows for which the model has written an answer

and `exact_match`, `f1`, `rouge1`, ... where each row has them by itself.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from peft_jobs import faults
from peft_jobs.evaluation.scoring import Evaluation, longest_first
from peft_jobs.storage.attempt_folder import ROWS_FILE
from peft_jobs.storage.files import name_beside
from peft_jobs.tasks import Score
from peft_jobs.tasks.squad import compared

log = logging.getLogger(__name__)

_RENAMED = {"row": "key"}
_MAY_BE_IDLE = ("num_bytes", "predicted", "actual")
"""Fields of every score that some tasks have no use for."""


def keep_rows(
    folder: Path, found: Evaluation, dataset: Dataset, numbers: Sequence[int]
) -> dict[str, float]:
    """Write what was found of each example into an attempt's folder; gives the metrics."""
    rows_to_keep(folder, found, dataset, numbers)()
    return found.metrics


def rows_to_keep(
    folder: Path, found: Evaluation, dataset: Dataset, numbers: Sequence[int]
) -> Callable[[], None]:
    """Writes what was found of each example into an attempt's folder, in any thread.

    The file is whole or not there. A full disk ends no trial.
    """
    return partial(_write, folder / ROWS_FILE, table_of(found, dataset, numbers))


def _write(path: Path, table: pa.Table) -> None:
    aside = name_beside(path)
    try:
        faults.passing("rows.writing")
        pq.write_table(table, aside, compression="zstd")
        aside.replace(path)
    except OSError as error:
        log.warning("%s cannot be written: %s", path, error)
        aside.unlink(missing_ok=True)


def table_of(found: Evaluation, dataset: Dataset, numbers: Sequence[int]) -> pa.Table:
    """The columns, in the order of the examples; `numbers` are those of their rows."""
    order = longest_first(dataset)
    scores = [found.scores[0]] * len(order)
    for place, score in zip(order, found.scores, strict=True):
        scores[place] = score
    columns: dict[str, Sequence[Any]] = {"row": [int(number) for number in numbers]}
    for field in fields(scores[0]):
        values = [getattr(score, field.name) for score in scores]
        if field.name not in _MAY_BE_IDLE or any(values):
            columns[_RENAMED.get(field.name, field.name)] = values
    if type(scores[0]) is Score and "actual" in columns:  # one class
        for name in ("predicted", "actual"):
            columns[name] = [value for (value,) in columns[name]]
    if by_row := compared(scores):
        pairs = [by_row[key] for key in columns["key"]]
        columns |= {"exact_match": [exact for exact, _ in pairs], "f1": [f1 for _, f1 in pairs]}
    if found.written is not None:
        places = found.written.examples
        for name, given in found.written.columns.items():
            values = [None] * len(scores)
            for place, value in zip(places, given, strict=True):
                values[place] = value
            columns[name] = values
    return pa.table(dict(columns))
