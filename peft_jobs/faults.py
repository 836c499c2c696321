"""Named places where a test may break this process; nothing happens unless one asks for it.

A test cannot say when a process dies inside a write, but it can say where: PEFT_SWEEPS_FAULT holds
`{"point": NAME, "nth": N, "action": "kill", "full_disk" or "pause", "marker": FILE}`, and the N-th
passing of that point, in whichever process of the sweep creates FILE first, is broken once; a pause
lasts until FILE is not empty. The variable is read from the environment because it must reach the
processes that Ray starts.
"""

import errno
import json
import os
import signal
import time
from collections import Counter

VARIABLE = "PEFT_SWEEPS_FAULT"

_FAULT: dict[str, object] = json.loads(os.environ.get(VARIABLE, "{}"))
_passed: Counter[str] = Counter()


def passing(point: str) -> None:
    """Mark a place. Never returns, or raises OSError, if the planned fault is due here."""
    if _FAULT.get("point") != point:
        return
    _passed[point] += 1
    if _passed[point] < int(str(_FAULT.get("nth", 1))):
        return
    try:
        os.close(os.open(str(_FAULT["marker"]), os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    if _FAULT.get("action", "kill") == "full_disk":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if _FAULT.get("action") == "pause":
        while not os.path.getsize(str(_FAULT["marker"])):
            time.sleep(0.01)
        return
    os.kill(os.getpid(), signal.SIGKILL)
