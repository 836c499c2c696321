"""The values a parameter may take: JSON scalars and lists of them.

A declaration holds a list as a tuple, so that it stays frozen and hashable; a drawn point holds a
list. Optuna's categorical choices cannot be lists: they travel as their canonical JSON text.
"""

import json
import math
import re
from typing import TypeAlias

Scalar: TypeAlias = str | int | float | bool | None
"""What JSON calls a string, number, boolean or null."""
Value: TypeAlias = Scalar | list[Scalar]
"""What a parameter has in a drawn point."""
Frozen: TypeAlias = Scalar | tuple[Scalar, ...]
Params: TypeAlias = dict[str, Value]
"""A drawn point: the value of each parameter by its dotted name."""

NAME = re.compile(r"[a-z_][a-z0-9_]*(\.[a-z_][a-z0-9_]*)*")
_EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d{1,3}")


def check_name(name: str) -> str:
    """`name` itself if it is dotted lower-case identifiers; ValueError otherwise."""
    if not NAME.fullmatch(name):
        raise ValueError(f"a name must be dotted lower-case words like adapter.r, got {name!r}")
    return name


def numeral(raw: object) -> object:
    """The number that `raw` writes with an exponent (`1e-4`, a string to YAML 1.1), or `raw`."""
    return float(raw) if isinstance(raw, str) and _EXPONENT.fullmatch(raw) else raw


def number(raw: object) -> object:
    """`numeral(raw)`, refusing booleans, which Python and pydantic would take for 0 and 1."""
    if isinstance(raw, bool):
        raise ValueError(f"must be a number, got the boolean {canonical(raw)}")
    return numeral(raw)


def freeze(raw: object) -> Frozen:
    """`raw` as a declaration holds it; ValueError if it is no finite JSON scalar or list of them.

    A string that YAML 1.1 should have read as a number (`1e-4`) becomes that number.
    """
    if isinstance(raw, list | tuple):
        return tuple(_scalar(item) for item in raw)
    return _scalar(raw)


def _scalar(raw: object) -> Scalar:
    raw = numeral(raw)
    if isinstance(raw, float) and not math.isfinite(raw):
        raise ValueError(f"must be finite, got {raw}")
    if raw is None or isinstance(raw, str | int | float):
        return raw
    kind = type(raw).__name__
    raise ValueError(f"must be a number, text, true, false, null or a list of these, got {kind}")


def thaw(value: Frozen) -> Value:
    """`value` as a drawn point holds it: a fresh list for a tuple."""
    return list(value) if isinstance(value, tuple) else value


def encode(value: Frozen | Value) -> Scalar:
    """`value` as Optuna stores it: a list as its canonical JSON text, a scalar as it is."""
    return canonical(value) if isinstance(value, list | tuple) else value


def canonical(value: object) -> str:
    """The JSON text of `value`: sorted keys, no spaces, no NaN; the same for equal values."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
