"""Running: what a live trial is at, and which of them have run for too long."""

from collections.abc import Mapping
from dataclasses import dataclass

from peft_jobs import Kind, Progress
from sweeps.driver.verdict import Fault
from sweeps.study.asker import Point


@dataclass
class Running:
    """What a live trial is at."""

    point: Point
    started: float
    """Seconds since the epoch."""
    attempt: int
    began: float
    """By the driver's clock."""
    progress: Progress | None = None
    fault: Fault | None = None
    """Why it was asked to stop, if that is not the pruner's decision; its end is told so."""


def overdue(
    running: Mapping[int, Running], limit_seconds: float | None, now: float
) -> list[tuple[int, Kind]]:
    """Trials that have run for longer, each given once; their fault is noted."""
    if limit_seconds is None:
        return []
    found = []
    for number, trial in running.items():
        if trial.fault is None and now - trial.began > limit_seconds:
            told = f"it ran for longer than budget.trial_timeout = {limit_seconds:g} s"
            trial.fault = Fault(Kind.TIMEOUT, told)
            found.append((number, trial.fault.kind))
    return found
