"""The first rows of a local file of data, read as a trial reads them, without torch."""

from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from peft_jobs import SpecError
from peft_jobs.references import load
from peft_jobs.spec import FILE_FORMATS, file_format
from peft_jobs.spec.cells import structure_of

MAX_ROWS = 200

Row = dict[str, Any]


def first_rows(path: str) -> list[Row]:
    """At most MAX_ROWS rows, cells of JSON as lists and mappings; other cells of text are text.

    SpecError for what is no file of data, or empty; DataError, with file and line, for one that
    cannot be read.
    """
    kind = file_format(path)
    file = Path(path).expanduser()
    if kind is None:
        known = ", ".join(FILE_FORMATS)
        raise SpecError(
            f"--data must be a file ({known}), got {path!r}; for a data set of the Hub write the "
            "file without --data and put the id into `data.train`"
        )
    if not file.is_file():
        raise SpecError(f"--data: no such file: {path}")
    rows = _parquet(file) if kind == "parquet" else _text(file, kind)
    if not rows:
        raise SpecError(f"--data: {path} has no rows")
    return [{name: structure_of(cell) for name, cell in row.items()} for row in rows]


def _text(file: Path, kind: str) -> list[Row]:
    module = "peft_jobs.data.text_files"
    lines = load("peft_jobs.data.text_lines:lines_of")(file)
    rows = load(f"{module}:READERS")[kind](file, lines, load(f"{module}:TextFormat")(kind))
    return list(islice(rows, MAX_ROWS))


def _parquet(file: Path) -> list[Row]:
    try:
        with pq.ParquetFile(file) as table:
            batch = next(table.iter_batches(MAX_ROWS), None)
    except (pa.ArrowException, OSError) as error:
        raise SpecError(f"--data: {file} cannot be read as parquet: {error}") from None
    return [] if batch is None else list(batch.to_pylist())
