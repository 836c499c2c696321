"""Named places where a test may break this process; nothing happens unless one asks for it.

A test cannot say when a process dies inside a write, but it can say where: PEFT_SWEEPS_FAULT holds
`{"point": NAME, "nth": N, "action": "kill", "full_disk" or "pause", "marker": FILE}`, and the N-th
passing of that point, in whichever process of the sweep creates FILE first, is broken once; a pause
lasts until FILE is not empty. The variable is read from the environment because it must reach the
processes that Ray starts.
"""

import errno
import functools
import json
import os
import signal
import time
from collections import Counter
from typing import Any

VARIABLE = "PEFT_SWEEPS_FAULT"

_passed: Counter[str] = Counter()


def passing(point: str) -> None:
    """Mark a place. Never returns, or raises OSError, if the planned fault is due here."""
    fault = _planned()
    if fault.get("point") != point:
        return
    _passed[point] += 1
    if _passed[point] < fault.get("nth", 1):
        return
    try:
        os.close(os.open(fault["marker"], os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    if fault.get("action", "kill") == "full_disk":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if fault.get("action") == "pause":
        while not os.path.getsize(fault["marker"]):
            time.sleep(0.01)
        return
    os.kill(os.getpid(), signal.SIGKILL)


@functools.cache
def _planned() -> dict[str, Any]:
    fault: dict[str, Any] = json.loads(os.environ.get(VARIABLE, "{}"))
    return fault
