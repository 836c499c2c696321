"""Rows of text files, byte for byte: every cell is the text that stands in the file.

No value is parsed and printed again: 01205, 5.50, 2024-05-01T08:30:00+02:00 and +47 stay what they
are. A cell of JSON that is a list or a mapping is one line of JSON. An empty cell of CSV, a null
and a missing key are None.
"""

import csv
import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset

from peft_jobs.data.text_lines import Lines, lines_of
from peft_jobs.errors import DataError
from peft_jobs.spec.cells import parse_json, text_of
from peft_jobs.storage.files import sha256, write_once

FORMAT = 2
"""Goes into every name: raise it when the content of an entry changes meaning."""
ROWS_AT_A_TIME = 10_000

Cells = dict[str, str | None]


@dataclass(frozen=True)
class TextFormat:
    """How files of text are read."""

    kind: str
    """One of READERS."""
    encoding: str = "utf-8"
    errors: str = "strict"
    """What is done where a file is not in its encoding, as `bytes.decode` says it."""
    delimiter: str = ","
    columns: tuple[str, ...] = ()
    """Of files of CSV without a header."""


def read_text_files(paths: Sequence[Path], form: TextFormat, entry: Path) -> Dataset:
    """The rows of `paths`, one file after the other, memory-mapped from a folder beside `entry`.

    A file may be compressed by gzip, bzip2 or xz. The columns are those of all rows, each of text.
    Raises DataError, with file and line, for what cannot be read.
    """
    known = sha256(repr(form))[:8]
    entry = entry.with_name(f"{entry.name}-{form.kind}-{known}-{FORMAT}")
    if not entry.is_dir():
        write_once(entry, lambda folder: _write(paths, form, folder / "rows.arrow"))
    return Dataset.from_file(str(entry / "rows.arrow"))


def file_digest(path: Path) -> str:
    """sha256 of a file's content, in hex; read again only when its size or time has changed."""
    status = path.stat()
    return _digest(path.resolve(), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=64)
def _digest(path: Path, size: int, modified: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(paths: Sequence[Path], form: TextFormat, target: Path) -> None:
    def rows_of(path: Path) -> Iterator[Cells]:
        return READERS[form.kind](path, lines_of(path, form.encoding, form.errors), form)

    columns: dict[str, None] = {}
    for path in paths:  # a key may come late: read once for the columns, once for the cells
        for row in rows_of(path):
            columns.update(dict.fromkeys(row))
    schema = pa.schema([(name, pa.string()) for name in columns])
    with pa.OSFile(str(target), "wb") as sink, pa.ipc.new_stream(sink, schema) as stream:
        for path in paths:
            rows = rows_of(path)
            while some := list(islice(rows, ROWS_AT_A_TIME)):
                stream.write_batch(pa.RecordBatch.from_pylist(some, schema))


def _json(path: Path, lines: Lines, form: TextFormat) -> Iterator[Cells]:
    """JSON Lines, or one list of objects or of texts, or one object with a list for each column;
    of the kind jsonl, an only line is a row whatever it holds."""
    first = next(((number, line) for number, line in lines if line.strip()), None)
    if first is None:
        return
    try:
        value = parse_json(first[1])
    except ValueError:
        value = None
    if isinstance(value, Mapping):
        others = ((number, line) for number, line in lines if line.strip())
        second = next(others, None)
        if second is not None or form.kind == "jsonl" or _is_flat(value):
            for number, line in chain([first], [second] if second else [], others):
                yield _cells(path, f"line {number}", _parsed(path, line.rstrip(), number - 1))
            return
    text = first[1] + "".join(line for _, line in lines)
    for number, row in enumerate(_listed(path, _parsed(path, text, first[0] - 1)), start=1):
        yield _cells(path, f"row {number}", row)


def _is_flat(row: Mapping[str, Any]) -> bool:
    return not any(isinstance(cell, Mapping | list) for cell in row.values())


def _parsed(path: Path, text: str, lines_before: int) -> Any:
    try:
        return parse_json(text)
    except ValueError as error:
        line = lines_before + getattr(error, "lineno", 1)
        text = f"line {line}: {getattr(error, 'msg', error)}"
        raise DataError(f"{path} cannot be read as json: {text}") from error


def _listed(path: Path, value: Any) -> list[Any]:
    """The rows of a document."""
    if isinstance(value, list):
        return [{"text": row} if isinstance(row, str) else row for row in value]
    found = [_column(cells) for cells in value.values()] if isinstance(value, Mapping) else []
    columns = [column for column in found if column is not None]
    if columns and len(columns) == len(found) and len(set(map(len, columns))) == 1:
        rows = [dict(zip(value, row, strict=True)) for row in zip(*columns, strict=True)]
        if len(columns) > 1 or all(map(_is_flat, rows)):
            return rows
    keys = f" with the keys {', '.join(map(repr, value))}" if isinstance(value, Mapping) else ""
    raise DataError(
        f"{path} cannot be read as json: it holds one value{keys}, and no list of rows; write the "
        "list alone, or one object a line in a file that ends in .jsonl"
    )


def _column(cells: Any) -> list[Any] | None:
    """The cells of a column: a list, or by number, as pandas writes them."""
    if isinstance(cells, Mapping) and list(cells) == [str(n) for n in range(len(cells))]:
        return list(cells.values())
    return cells if isinstance(cells, list) else None


def _cells(path: Path, where: str, row: Any) -> Cells:
    if not isinstance(row, Mapping):
        raise DataError(f"{path} cannot be read as json: {where}: {str(row)[:60]!r} is no object")
    try:
        cells = {name: None if cell is None else text_of(cell) for name, cell in row.items()}
    except RecursionError as error:
        raise DataError(f"{path}, {where}: is nested too deeply") from error
    for name, cell in cells.items():
        try:
            (name + (cell or "")).encode()
        except UnicodeEncodeError as error:
            text = f"column {name!r} holds half of a character (\\ud800 to \\udfff)"
            raise DataError(f"{path}, {where}: {text}") from error
    return cells


def _csv(path: Path, lines: Lines, form: TextFormat) -> Iterator[Cells]:
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader((line for _, line in lines), delimiter=form.delimiter, strict=True)
    header = list(form.columns) or None
    try:
        for cells in reader:
            if not cells:
                continue
            if header is None:
                header = _header(cells)
            else:
                yield _named(path, reader.line_num, header, cells)
    except csv.Error as error:
        text = f"{path} cannot be read as csv: line {reader.line_num}: {error}"
        raise DataError(text.partition(" - do you")[0]) from error


def _tsv(path: Path, lines: Lines, form: TextFormat) -> Iterator[Cells]:
    """A line is a row: a cell is in quotes only where all of its line is well-formed with them."""
    header = list(form.columns) or None
    opened: int | None = None
    for number, line in lines:
        line = line.rstrip("\r\n")
        if header is not None and len(header) == 1:
            opened = _opened(path, number, line, opened)
        plain = line.split("\t")
        try:
            (quoted,) = csv.reader([line], delimiter="\t", strict=True) if line else [[]]
        except (csv.Error, ValueError):
            quoted = plain
        if header is None:
            header = _header(quoted) if line else None
        elif line.strip(" "):
            if len(quoted) < len(header):
                text = f"has {len(quoted)} cells, the header {len(header)}"
                advice = "a cell with a line break or a tab needs a file of CSV"
                raise DataError(f"{path}, line {number}: {text}; {advice}")
            yield _named(path, number, header, quoted)


def _opened(path: Path, number: int, line: str, opened: int | None) -> int | None:
    """The line, if any, in which a quoted cell of a single column is open behind this one. Raises
    DataError where one ends."""
    quotes = line.replace('""', "")
    if opened is not None and quotes.find('"') == len(quotes) - 1 and quotes:
        text = f"a quoted cell goes on to line {number}"
        advice = "a cell with a line break needs a file of CSV; where a line is a row, name it .txt"
        raise DataError(f"{path}, line {opened}: {text}; {advice}")
    if quotes.startswith('"') and quotes.count('"') == 1:
        return number
    return None if '"' in quotes else opened


def _text(path: Path, lines: Lines, form: TextFormat) -> Iterator[Cells]:
    for _, line in lines:
        if line.strip():
            yield {"text": line.rstrip("\r\n")}


def _header(cells: Sequence[str]) -> list[str]:
    """Names of columns as pandas gives them: numbered where they repeat or are missing."""
    names: list[str] = []
    for number, cell in enumerate(cells):
        first = cell or f"Unnamed: {number}"
        others = {*names, *cells[number + 1 :]} if cell in cells[:number] or not cell else set()
        repeats = (f"{first}.{count}" for count in range(1, len(cells) + 1))
        names.append(next(name for name in (first, *repeats) if name not in others))
    return names


def _named(path: Path, line: int, header: Sequence[str], cells: Sequence[str]) -> Cells:
    if len(cells) > len(header):
        raise DataError(f"{path}, line {line}: has {len(cells)} cells, the header {len(header)}")
    missing = [""] * (len(header) - len(cells))
    return {name: cell or None for name, cell in zip(header, [*cells, *missing], strict=True)}


Reader = Callable[[Path, Lines, TextFormat], Iterator[Cells]]
READERS: dict[str, Reader] = {
    "json": _json,
    "jsonl": _json,
    "csv": _csv,
    "tsv": _tsv,
    "text": _text,
}
