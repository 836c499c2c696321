"""A cell of a row as text, as a file would have it, and as the structure that its JSON text tells.

Rows of text files (CSV, JSON, ...) hold text alone, exactly as written there; rows of typed ones
(Parquet) hold Python's values. Both have the same text here, so that data mean the same in either.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

_MOST_DIGITS = 4_000
"""Python reads no integers that are much longer."""


class WrittenFloat(float):
    """A number of a JSON text that keeps how it is written there: 5.50, 1e5."""

    text: str

    def __new__(cls, text: str) -> "WrittenFloat":
        number = super().__new__(cls, text)
        number.text = text
        return number


def text_of(cell: object) -> str:
    """The text of a cell: what its file says; a missing value is the empty text.

    true and false are written as in JSON, lists and mappings as one line of JSON. Raises ValueError
    for bytes, which have no text.
    """
    if isinstance(cell, str):
        return cell
    if cell is None:
        return ""
    if isinstance(cell, bool):
        return "true" if cell else "false"
    if isinstance(cell, WrittenFloat):
        return cell.text
    if isinstance(cell, float) and math.isnan(cell):
        return ""
    if isinstance(cell, Mapping | list | tuple):
        return json_text(cell)
    if isinstance(cell, bytes):
        raise ValueError("bytes have no text")
    return str(cell)


def json_text(value: object) -> str:
    """`value` as one line of JSON, whose numbers are written as `text_of` writes them."""
    if isinstance(value, Mapping):
        items = (
            f"{json.dumps(str(k), ensure_ascii=False)}: {json_text(v)}" for k, v in value.items()
        )
        return "{" + ", ".join(items) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(json_text, value)) + "]"
    if value is None:
        return "null"
    if isinstance(value, int | float):
        return text_of(value) or "null"
    return json.dumps(text_of(value), ensure_ascii=False)


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text; floats keep their text, NaN is a missing value.

    Raises ValueError, as json.loads does, for what is no JSON.
    """
    try:
        return json.loads(
            text, parse_float=WrittenFloat, parse_int=_integer, parse_constant=_constant
        )
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error


def structure_of(cell: object) -> Any:
    """The list or mapping that a cell holds, also where it is written as JSON text; any other cell
    as it is."""
    if not isinstance(cell, str) or not cell.lstrip().startswith(("[", "{")):
        return cell
    try:
        return parse_json(cell)
    except ValueError:
        return cell


def _integer(text: str) -> int | float:
    return WrittenFloat(text) if text == "-0" or len(text) > _MOST_DIGITS else int(text)


def _constant(text: str) -> float | None:
    return None if text == "NaN" else WrittenFloat(text)
