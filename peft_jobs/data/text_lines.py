"""The lines of a file of text, which may be compressed."""

import bz2
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from peft_jobs.errors import DataError

_COMPRESSED: tuple[tuple[bytes, str, Callable[[Path], Any] | None], ...] = (
    (rb"\x1f\x8b", "gzip", gzip.open),
    (rb"BZh[1-9]1AY&SY", "bzip2", bz2.open),
    (rb"\xfd7zXZ\x00", "xz", lzma.open),
    (rb"\x28\xb5\x2f\xfd", "zstandard", None),
    (rb"PK\x03\x04", "zip", None),
    (rb"7z\xbc\xaf", "7z", None),
)
"""How compressed files begin, their name, and what opens them."""
_BOM = b"\xef\xbb\xbf"

Lines = Iterator[tuple[int, str]]
"""Numbers, from 1, and texts of lines, each with the break that ends it."""


def lines_of(path: Path, encoding: str = "utf-8", errors: str = "strict") -> Lines:
    """The lines of a file of text. Raises DataError for what cannot be read."""
    number = 0
    try:
        with _open(path) as file:
            decoded: Iterable[str]
            if encoding.lower() in ("utf-8", "utf8"):
                decoded = (line.removeprefix(_BOM).decode(errors=errors) for line in _broken(file))
            else:
                decoded = io.TextIOWrapper(file, encoding, errors, newline="")
            for number, line in enumerate(decoded, start=1):
                yield number, line
    except UnicodeDecodeError as error:
        text = f"is no {encoding.upper()} text; save the file as UTF-8"
        raise DataError(f"{path}, line {number + 1}: {text}") from error
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _open(path: Path) -> Any:
    with path.open("rb") as file:
        head = file.read(16)
    for begin, name, opened in _COMPRESSED:
        if re.match(begin, head):
            if opened is None:
                raise DataError(
                    f"{path} is compressed by {name}: unpack it, or use gzip, bzip2, xz"
                )
            return opened(path)
    return path.open("rb")


def _broken(file: Iterable[bytes]) -> Iterator[bytes]:
    """The lines of a file; one that has no line feed at all has lines that end in CR."""
    lines = iter(file)
    first = next(lines, b"")
    yield from first.splitlines(keepends=True) if not first.endswith(b"\n") else [first]
    yield from lines
