"""What this process's engine is at, and when it was last seen to get on: a step, a batch, a phase.

A host has one thread that works; whoever looks from outside knows by this that it does.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

_last = time.monotonic()
_stage = ""


def moved() -> None:
    """Say that the work gets on. Costs well under a microsecond."""
    global _last
    _last = time.monotonic()


def last_moved() -> float:
    """When that was, by `time.monotonic`."""
    return _last


@contextmanager
def at_stage(name: str) -> Iterator[None]:
    """Say that the work of the block is at `name`; stages may lie in one another."""
    global _stage
    before, _stage = _stage, name
    moved()
    try:
        yield
    finally:
        _stage = before


def stage() -> str:
    """The innermost stage that the work is at; "" at none."""
    return _stage
