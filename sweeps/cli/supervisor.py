"""Starts a sweep's driver as a child process, and starts it again when it dies or hangs.

No Ray in here: a dead head leaves a driver waiting for ever inside Ray, so whoever watches it must
be outside. The child says that it is getting on by writing into a pipe (`heartbeat`); what it is
doing it does not say, the study knows. A child that ends by its own decision says so too, and is
not started again.
"""

import contextlib
import ctypes
import logging
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType

import psutil

from sweeps.cli.exit_codes import ExitCode
from sweeps.driver.heartbeat import ENDED, TRIAL_ENDED, VARIABLE

log = logging.getLogger(__name__)

SILENCE_SECONDS = 120.0
"""After which a driver that says nothing is taken to hang."""
PAUSE_SECONDS, MAX_PAUSE_SECONDS = 1.0, 30.0
"""Before a driver is started again; doubled for each start in a row in which no trial ends."""
MAX_STARTS_WITHOUT_END = 5
"""Starts in a row in which no trial has ended, after which the supervisor gives up."""
LONG_SECONDS = 3600.0
"""A driver that has lived for so long has got on, also if no trial has ended."""
MAX_STARTS_PER_HOUR = 20
"""Deaths of drivers within an hour, after which the supervisor gives up in any case."""
UNAVAILABLE_PATIENCE_SECONDS = 1800.0
"""How long a cluster that was there may be away before the supervisor gives up."""
_FINAL = (ExitCode.DONE, ExitCode.BAD_INPUT, ExitCode.INTERRUPTED)
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def supervise(
    command: Sequence[str], again: Sequence[str], silence_seconds: float = SILENCE_SECONDS
) -> int:
    """Run `command`, a driver, to its end; `again` is run after each death. The exit code.

    SIGINT and SIGTERM are passed on, so both end the sweep as they would without a supervisor. A
    driver that dies MAX_STARTS_WITHOUT_END times in a row before a trial has ended is given up, and
    one that dies more than MAX_STARTS_PER_HOUR times in an hour.
    """
    _adopt_orphans()
    passed_on = _Signals()
    starts, was_available, away_since = 0, False, 0.0
    deaths: list[float] = []
    with passed_on:
        while True:
            begun = time.monotonic()
            child = passed_on.start(command)
            code = child.wait(silence_seconds)
            child.clean_up()
            if passed_on.seen:
                return code if code in _FINAL else ExitCode.INTERRUPTED
            if child.has_ended or code in _FINAL:
                return code
            if code == ExitCode.UNAVAILABLE:
                if not was_available:
                    return ExitCode.BAD_INPUT
                away_since = away_since or time.monotonic()
                if time.monotonic() - away_since > UNAVAILABLE_PATIENCE_SECONDS:
                    return code
            else:
                was_available, away_since = True, 0.0
                now = time.monotonic()
                got_on = child.has_ended_trial or now - begun > LONG_SECONDS
                starts = 1 if got_on else starts + 1
                deaths = [*(death for death in deaths if now - death < 3600.0), now]
                if starts >= MAX_STARTS_WITHOUT_END:
                    log.error("the driver died %d times before a trial ended", starts)
                    return ExitCode.FAILED
                if len(deaths) > MAX_STARTS_PER_HOUR:
                    log.error("the driver died %d times within an hour", len(deaths))
                    return ExitCode.FAILED
            pause = min(MAX_PAUSE_SECONDS, PAUSE_SECONDS * 2.0 ** max(0, starts - 1))
            log.warning("the driver %s; starting it again in %g s", child.how, pause)
            if passed_on.wait(pause):
                return ExitCode.INTERRUPTED
            command = again


class _Child:
    """One run of the driver, in a process group of its own."""

    def __init__(self, command: Sequence[str]) -> None:
        self._end, theirs = os.pipe()
        environment = {**os.environ, VARIABLE: str(theirs)}
        self.process = subprocess.Popen(
            command, env=environment, pass_fds=[theirs], process_group=0
        )
        os.close(theirs)
        self.has_ended_trial = self.has_ended = False
        self.how = ""

    def wait(self, silence_seconds: float) -> int:
        """Until it ends, or is killed because it says nothing; the exit code."""
        while True:
            ready, _, _ = select.select([self._end], [], [], silence_seconds)
            heard = os.read(self._end, 4096) if ready else None
            if heard is None:
                self.how = f"has said nothing for {silence_seconds:g} s"
                self.process.kill()
                break
            if heard == b"":
                break
            self.has_ended_trial = self.has_ended_trial or TRIAL_ENDED in heard
            self.has_ended = self.has_ended or ENDED in heard
        code = self.process.wait()
        if code < 0:
            self.how = self.how or f"was killed by {signal.Signals(-code).name}"
            code = 128 - code
        self.how = self.how or f"has ended with exit code {code}"
        return code

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)

    def clean_up(self) -> None:
        """End what the driver has left: its cluster on this machine, above all."""
        os.close(self._end)
        left = [p for p in psutil.Process().children(recursive=True) if _is_alive(p)]
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=10)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


class _Signals:
    """Passes SIGINT and SIGTERM on to the child for as long as the block lasts."""

    def __init__(self) -> None:
        self._child: _Child | None = None
        self._is_passed_on = False
        self.seen = False

    def __enter__(self) -> "_Signals":
        self._before = {number: signal.signal(number, self._pass_on) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def start(self, command: Sequence[str]) -> _Child:
        """A child that also gets a signal that has come while it was started."""
        self._child = None
        self._child = child = _Child(command)
        if self.seen and not self._is_passed_on:
            child.signal(signal.SIGTERM)
        return child

    def wait(self, seconds: float) -> bool:
        """Wait; True at once if a signal has come."""
        deadline = time.monotonic() + seconds
        while not self.seen and time.monotonic() < deadline:
            time.sleep(0.1)
        return self.seen

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self.seen = True
        if self._child is not None:
            self._is_passed_on = True
            self._child.signal(number)


def _adopt_orphans() -> None:
    """Become the parent of what a dead driver leaves (Linux only), so that it can be found."""
    if sys.platform == "linux":
        pr_set_child_subreaper = 36  # linux/prctl.h
        ctypes.CDLL(None).prctl(pr_set_child_subreaper, 1, 0, 0, 0)


def _is_alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False
