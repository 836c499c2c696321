"""Jobs that were taken from the host and cannot begin before something else has ended."""

from collections import deque
from dataclasses import dataclass

from peft_jobs.engines.packed.packed_trial import PackedTrial
from peft_jobs.host.job import Inbox, Job


@dataclass(frozen=True)
class Waiting:
    """A job that waits."""

    job: Job
    trial: PackedTrial | None = None
    """Where memory ran out: the trial as far as it has come."""
    alone: bool = False
    """Whether the solo engine is to run it."""


class WaitingLine:
    """First come, first served, before anything that is still in the inbox."""

    def __init__(self) -> None:
        self._waiting: deque[Waiting] = deque()

    def next(self, inbox: Inbox | None = None, block: bool = False) -> Waiting | None:
        """The first in line, or the next job of the inbox; None if there is none."""
        if self._waiting:
            return self._waiting.popleft()
        job = None if inbox is None else inbox.take(block)
        return None if job is None else Waiting(job)

    def put_back(self, waiting: Waiting) -> None:
        """It is the first in line again, and takes no memory of a GPU."""
        if waiting.trial is not None:
            waiting.trial.move_aside()
        self._waiting.appendleft(waiting)

    def take(self, inbox: Inbox) -> bool:
        """Let a job of the inbox stand in an empty line; False if there is none, or a line."""
        if not self._waiting and (job := inbox.take(block=False)) is not None:
            self._waiting.append(Waiting(job))
            return True
        return False

    @property
    def has_cancelled(self) -> bool:
        """Whether someone in line need not wait any longer."""
        return any(waiting.job.cancelled is not None for waiting in self._waiting)

    def end_cancelled(self) -> None:
        """End the jobs in line that were cancelled."""
        for waiting in [w for w in self._waiting if w.job.cancelled is not None]:
            self._waiting.remove(waiting)
            trial = waiting.trial
            waiting.job.end(waiting.job.stopped() if trial is None else trial.end()())
