"""Running: what a live trial is at, and which of them have run for too long."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from peft_jobs import Kind, Progress
from sweeps.driver.objective_fault import Fault
from sweeps.study.point import Point

CANCEL_AGAIN_SECONDS = 10.0
"""A trial that is on its way to a host, or to another one, hears nothing of a cancellation."""


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
    cancelled: float = -math.inf
    """When it was last found to have run for too long, by the driver's clock."""


def overdue(
    running: Mapping[int, Running], limit_seconds: float | None, now: float
) -> list[tuple[int, Kind]]:
    """Trials that have run for longer, with why they are to stop; their fault is noted.

    Each is given again after CANCEL_AGAIN_SECONDS.
    """
    if limit_seconds is None:
        return []
    found = []
    for number, trial in running.items():
        is_over = now - trial.began > limit_seconds
        if is_over and now - trial.cancelled > CANCEL_AGAIN_SECONDS:
            told = f"it ran for longer than budget.trial_timeout = {limit_seconds:g} s"
            trial.fault, trial.cancelled = trial.fault or Fault(Kind.TIMEOUT, told), now
            found.append((number, trial.fault.kind))
    return found
