"""When this process's engine was last seen to get on: a step, a batch, a phase that began.

A host has one thread that works; whoever looks from outside knows by this that it does.
"""

import time

_last = time.monotonic()


def moved() -> None:
    """Say that the work gets on. Costs well under a microsecond."""
    global _last
    _last = time.monotonic()


def last_moved() -> float:
    """When that was, by `time.monotonic`."""
    return _last
