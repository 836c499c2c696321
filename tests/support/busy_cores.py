"""Other processes that use cores."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_SPIN = "import os\nwhile os.getppid() == {}: pass"


@contextmanager
def busy_cores(number: int) -> Iterator[None]:
    """So many processes that do nothing but compute, until the block or this process ends."""
    command = [sys.executable, "-c", _SPIN.format(os.getpid())]
    processes = [subprocess.Popen(command) for _ in range(number)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()
