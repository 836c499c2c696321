"""Sizes and durations as people write them: `22GB`, `40GiB`, `2h`, `1h30m`."""

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema

from peft_jobs.spec.fields import Number, Positive

_SIZES = {"B": 1}
_SIZES |= {f"{letter}B": 1000**power for power, letter in enumerate("kMGTP", start=1)}
_SIZES |= {f"{letter}iB": 1024**power for power, letter in enumerate("KMGTP", start=1)}
_TIMES = {"d": 86_400.0, "h": 3_600.0, "m": 60.0, "min": 60.0, "s": 1.0, "sec": 1.0}
_PART = re.compile(r"(\d+(?:\.\d+)?) ?([A-Za-z]+) ?")


def size_in_bytes(text: str) -> float:
    """`22GB` is 22e9 and `40GiB` is 40 * 2**30, as in the SI and in IEC 80000-13.

    ValueError if it is no size.
    """
    parts = _parts(text)
    known = {unit.lower(): size for unit, size in _SIZES.items()}
    if len(parts) != 1 or parts[0][1].lower() not in known:
        raise ValueError(
            f"must be a number of bytes, or a size such as 22GB or 40GiB; got {text!r}"
        )
    return parts[0][0] * known[parts[0][1].lower()]


def duration_in_seconds(text: str) -> float:
    """`2h`, `90m`, `1h30m`, `45s`, `1.5d`, in seconds; ValueError if it is none."""
    parts = _parts(text)
    units = [unit.lower() for _, unit in parts]
    sizes = [_TIMES.get(unit, 0.0) for unit in units]
    if not parts or 0.0 in sizes or sizes != sorted(set(sizes), reverse=True):
        raise ValueError(
            f"must be a number of seconds, or a duration such as 45s, 90m, 2h or 1h30m; "
            f"got {text!r}"
        )
    return sum(number * size for (number, _), size in zip(parts, sizes, strict=True))


def _parts(text: str) -> list[tuple[float, str]]:
    """Numbers with their units; none if something else stands there too."""
    stripped = text.strip()
    found = list(_PART.finditer(stripped))
    if "".join(match.group() for match in found) != stripped:
        return []
    return [(float(match[1]), match[2]) for match in found]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _seconds(value: Any) -> Any:
    is_text = isinstance(value, str) and not _is_number(value)
    return duration_in_seconds(value) if is_text else value


def _bounds(value: Any) -> Any:
    """Bounds by metric: sizes of bytes and durations of minutes may be written with units."""
    if not isinstance(value, Mapping):
        return value
    return {metric: _bound(metric, bound) for metric, bound in value.items()}


def _bound(metric: Any, bound: Any) -> Any:
    if not isinstance(bound, str) or _is_number(bound):
        return bound
    name = str(metric)
    try:
        if name.endswith("_bytes"):
            return size_in_bytes(bound)
        if name == "minutes":
            return duration_in_seconds(bound) / 60
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    return bound


Seconds = Annotated[
    Positive,
    BeforeValidator(_seconds),
    WithJsonSchema(
        {"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "string"}]},
        mode="validation",
    ),
]
"""A duration in seconds, which may be written as `2h` or `90m`."""
Bounds = Annotated[
    dict[str, Number],
    BeforeValidator(_bounds),
    WithJsonSchema(
        {
            "type": "object",
            "additionalProperties": {"anyOf": [{"type": "number"}, {"type": "string"}]},
        },
        mode="validation",
    ),
]
"""Upper bounds by metric; of bytes and of minutes they may be written as `22GB` and `2h`."""
