"""The errors of one trial; each derives from the matching builtin and survives pickling.

PeftJobsError
    SpecError         ValueError        the trial cannot run as described
        Refused                         the base, or PEFT, does not take this adapter
    DataError         ValueError        the data do not hold what the task needs
    Diverged          ArithmeticError   a loss is not a finite number
    OutOfMemory       MemoryError       the trial does not fit the memory of its device
    DeviceLost        RuntimeError      the device takes no more work from this process
    Fenced            RuntimeError      a call carried an attempt that is not the current one
    Damaged           ValueError        a checkpoint cannot be trusted
    GivenUp           ConnectionError   a store was away for too long

Those of `sweeps` above them: Unavailable and SweepFileError, both SpecErrors, and LeaseLost.
`search_spaces` has its own SpaceError, a ValueError.
"""


class PeftJobsError(Exception):
    """Base of every error that this package raises on purpose."""


class SpecError(PeftJobsError, ValueError):
    """The trial cannot run as described: a wrong value, a name without a match, no such file."""


class Refused(SpecError):
    """The base, or PEFT, does not take this adapter."""


class DataError(PeftJobsError, ValueError):
    """The data do not hold what the task needs: missing columns, empty rows, unknown labels."""


class Diverged(PeftJobsError, ArithmeticError):
    """A loss is not a finite number."""


class OutOfMemory(PeftJobsError, MemoryError):
    """The trial does not fit the memory of its device."""


class DeviceLost(PeftJobsError, RuntimeError):
    """The device takes no more work from this process; its trials can go on in another one."""


class Fenced(PeftJobsError, RuntimeError):
    """A call carried an attempt that is no longer the trial's current one (`current`)."""

    def __init__(self, trial: int, attempt: int, current: int) -> None:
        super().__init__(trial, attempt, current)
        self.trial, self.attempt, self.current = trial, attempt, current

    def __str__(self) -> str:
        return f"trial {self.trial}: attempt {self.attempt} is not the current one ({self.current})"


class Damaged(PeftJobsError, ValueError):
    """A checkpoint that cannot be used; the message says why."""


class GivenUp(PeftJobsError, ConnectionError):
    """A store was away for too long."""
