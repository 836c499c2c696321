"""The installed packages against the lower bounds that this distribution declares."""

import importlib.metadata
import re
from collections.abc import Iterator
from typing import Literal

DISTRIBUTION = "peft-sweeps"
_BOUND = re.compile(r"^([A-Za-z0-9._-]+)(?:\[.*?\])?\s*>=\s*([0-9.]+)\s*$")

Line = tuple[str, Literal["ok", "problem"], str, str]
"""Name, status, what was found, what to do."""


def packages() -> Iterator[Line]:
    """One line for all packages that are as they should be, and one for each that is not."""
    fine = []
    for name, bound in bounds().items():
        found = installed(name)
        advice = f"pip install '{name}>={bound}'"
        if found is None:
            yield name, "problem", "not installed", advice
        elif version_key(found) < version_key(bound):
            yield name, "problem", f"{found}, must be at least {bound}", advice
        else:
            fine.append(f"{name} {found}")
    if fine:
        yield "packages", "ok", ", ".join(fine), ""


def bounds() -> dict[str, str]:
    """Lower bounds by package, those of extras left out."""
    required = importlib.metadata.requires(DISTRIBUTION) or []
    found = (_BOUND.match(text) for text in required if "extra ==" not in text)
    return {match[1]: match[2] for match in found if match}


def installed(name: str) -> str | None:
    """The version that is installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def version_key(version: str) -> tuple[int, ...]:
    """The release's numbers; enough to compare with a lower bound (`2.13.0+cpu` -> 2, 13, 0)."""
    return tuple(map(int, re.findall(r"\d+", version.partition("+")[0])))
