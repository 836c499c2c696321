"""How a supervised driver says that it is getting on: bytes into a pipe it has inherited.

The pipe works the other way as well: a driver that finds it closed knows that its supervisor is
gone, and stops.
"""

import os

VARIABLE = "PEFT_SWEEPS_PULSE"
"""Holds the number of the pipe's end that the driver inherits."""
BEAT, TRIAL_ENDED, ENDED = b".", b"T", b"E"


class Heartbeat:
    """The driver's end of the pipe; without a supervisor it does nothing."""

    def __init__(self, end: int | None = None) -> None:
        self._end = end
        if end is not None:
            os.set_inheritable(end, False)  # not to the processes that Ray starts
            os.set_blocking(end, False)

    @classmethod
    def of_environment(cls) -> "Heartbeat":
        """The heartbeat that this process's supervisor listens to, if it has one."""
        text = os.environ.pop(VARIABLE, None)
        return cls(None if text is None else int(text))

    def beat(self) -> bool:
        """Say that this process is getting on; False if its supervisor is gone."""
        return self._write(BEAT)

    def trial_ended(self) -> None:
        """Say that a trial has ended."""
        self._write(TRIAL_ENDED)

    def ended(self) -> None:
        """Say that this process ends by its own decision, whatever its exit code."""
        self._write(ENDED)

    def _write(self, what: bytes) -> bool:
        if self._end is None:
            return True
        try:
            os.write(self._end, what)
        except BlockingIOError:
            return True  # a supervisor that is stopped reads nothing
        except BrokenPipeError:
            return False
        return True
