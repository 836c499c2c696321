"""What a cell of a label column says, in sources with types (Parquet) and in text (CSV, JSON).

A whole column decides what its cells are: `kind_of` all of them at once.
"""

import json
import math
import re
from collections.abc import Iterable
from decimal import Decimal
from typing import Any, Literal

Kind = Literal["integer", "boolean", "decimal", "name"]
NO_LABEL = -1
"""What GLUE and others write where a row has no label."""
_INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,17})(\.0+)?")
_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
_PLAIN_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_BOOLEANS = {"true": True, "false": False}


def kind_of(cells: Iterable[Any]) -> Kind:
    """Integers, booleans or numbers with decimals if all are; names otherwise.

    A number with leading zeros or a plus sign is a name, so `01205` is not 1205.
    """
    found = list(cells)
    if all(integer(cell) is not None for cell in found):
        return "integer"
    if all(boolean(cell) is not None for cell in found):
        return "boolean"
    if all(_is_plain_number(cell) for cell in found):
        return "decimal"
    return "name"


def integer(cell: Any) -> int | None:
    """A whole number, also as text (`1`, `1.0`) or a float; None for all else."""
    if isinstance(cell, bool):
        return None
    if isinstance(cell, int):
        return cell
    if isinstance(cell, float | Decimal):
        return int(cell) if math.isfinite(cell) and cell == int(cell) else None
    if isinstance(cell, str) and _INTEGER.fullmatch(cell) and not cell.startswith("-0"):
        return int(cell.partition(".")[0])
    return None


def number(cell: Any) -> float | None:
    """A finite number, also as text; None for all else."""
    if isinstance(cell, bool) or not isinstance(cell, int | float | Decimal | str):
        return None
    if isinstance(cell, str) and not _NUMBER.fullmatch(cell.strip()):
        return None
    found = float(cell)
    return found if math.isfinite(found) else None


def boolean(cell: Any) -> bool | None:
    """True or false, also as text in any case; None for all else."""
    return _BOOLEANS.get(cell.lower()) if isinstance(cell, str) else _bool_or_none(cell)


def flag(cell: Any) -> int | None:
    """0 or 1, where a cell answers yes or no: a boolean, or one of these numbers; None else."""
    found = boolean(cell)
    value = integer(cell) if found is None else int(found)
    return value if value in (0, 1) else None


def is_missing(cell: Any) -> bool:
    """Whether a cell is empty: null, not a number, or blank text."""
    if isinstance(cell, float):
        return math.isnan(cell)
    return cell is None or (isinstance(cell, str) and not cell.strip())


def is_structure(cell: Any) -> bool:
    """Whether a cell is a list or a mapping, also as JSON text."""
    if isinstance(cell, str) and cell.lstrip()[:1] in ("[", "{"):
        try:
            cell = json.loads(cell)
        except ValueError:
            return False
    return isinstance(cell, list | dict)


def spelled(cell: Any) -> str:
    """A cell as a name, as JSON writes it."""
    return str(cell).lower() if isinstance(cell, bool) else str(cell)


def _bool_or_none(cell: Any) -> bool | None:
    return cell if isinstance(cell, bool) else None


def _is_plain_number(cell: Any) -> bool:
    if isinstance(cell, str):
        return _PLAIN_NUMBER.fullmatch(cell) is not None
    return number(cell) is not None
