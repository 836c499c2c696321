"""Values and sizes as a person reads them."""

import json


def shown(value: object) -> str:
    """A parameter's value: four digits of a number, a list's entries in a row, JSON's `null`."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def size(count: int | None) -> str:
    """Bytes in MiB or GiB; nothing for what is not known."""
    if count is None:
        return ""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def numbered(numbers: list[int] | tuple[int, ...], most: int = 5) -> str:
    """Trials by number, the first few of many: `0003, 0007 and 4 more`."""
    told = ", ".join(f"{number:04d}" for number in numbers[:most])
    return told + (f" and {len(numbers) - most} more" if len(numbers) > most else "")
