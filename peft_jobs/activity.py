"""What this process's engine is at, and when it was last seen to get on: a step, a batch, a phase.

A host has one thread that works; whoever looks from outside knows by this that it does.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_last = time.monotonic()
_stage = ""
_follow: Callable[[], object] | None = None


def moved() -> None:
    """Say that the work gets on. Costs well under a microsecond, and what `each_move` calls."""
    global _last
    _last = time.monotonic()
    if _follow is not None:
        _follow()


def last_moved() -> float:
    """When that was, by `time.monotonic`."""
    return _last


@contextmanager
def each_move(follow: Callable[[], object]) -> Iterator[None]:
    """Within the block, call `follow` at each move, in the thread that moves."""
    global _follow
    before, _follow = _follow, follow
    try:
        yield
    finally:
        _follow = before


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
