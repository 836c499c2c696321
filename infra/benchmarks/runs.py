"""Trials put on an engine as a host would put them, with a stamp on each of their reports.

Trials may be stopped at a step, as a pruner would: then nothing but steps is measured. What is
timed lies between the first step of all and the last.
"""

import math
import statistics
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peft_jobs.engines.packed.calibration import Calibration
from peft_jobs.engines.solo.solo_engine import SoloEngine
from peft_jobs.host.job import Job
from peft_jobs.host.result import Kind, Progress, State, TrialResult
from peft_jobs.spec import TrialSpec


@dataclass(frozen=True)
class Until:
    """Where trials are stopped; by default at their ends."""

    step: float = math.inf
    time: float = math.inf
    """Of `time.monotonic`; seen at a report."""


class TimedJob(Job):
    """A trial whose reports are stamped and answered at once."""

    def __init__(
        self,
        number: int,
        spec: TrialSpec,
        directory: Path,
        engine: Any,
        until: Until,
        watch: Callable[[int], None],
    ) -> None:
        """`watch` is told the step of each report, in the thread that trains."""
        super().__init__(number, 1, spec, directory, None, threading.Condition())
        self._engine, self._until, self._watch = engine, until, watch
        self.began_at = -1
        """Packed steps that the engine had made after this trial's first."""
        self.stamps: list[float] = []
        self.processor: list[float] = []
        self.steps: list[int] = []
        self.losses: list[float] = []

    def report(self, progress: Progress) -> None:
        self.stamps.append(time.perf_counter())
        self.processor.append(time.process_time())
        if not self.steps:
            rounds = getattr(self._engine, "rounds", None)
            self.began_at = 0 if rounds is None else rounds.steps
        self.steps.append(progress.step)
        self.losses.append(progress.metrics.get("train/loss", math.nan))
        late = time.monotonic() > self._until.time and len(self.steps) > 1
        if progress.step >= self._until.step or late:
            self.cancelled = Kind.WEAK.value
        self._watch(progress.step)

    @property
    def ended_as(self) -> TrialResult:
        if self.result is None:
            raise RuntimeError(f"trial {self.trial} has not ended")
        return self.result


@dataclass
class Queue:
    """An inbox that holds all its jobs from the start."""

    jobs: deque[TimedJob]

    def take(self, block: bool = True) -> Job | None:
        return self.jobs.popleft() if self.jobs else None


@dataclass
class Ran:
    """Trials that an arm has run."""

    jobs: list[TimedJob]
    alone: bool
    seconds: float = field(init=False)
    processor_seconds: float = field(init=False)
    """Of all threads of this process; what other processes do hardly touches it."""
    trial_steps: int = field(init=False)
    """In `seconds`: between the first step of all and the last."""

    def __post_init__(self) -> None:
        self.seconds = self._between([job.stamps for job in self.jobs])
        self.processor_seconds = self._between([job.processor for job in self.jobs])
        self.trial_steps = sum(job.steps[-1] - job.steps[0] for job in self.jobs)

    def _between(self, stamps: Sequence[Sequence[float]]) -> float:
        first, last = [each[0] for each in stamps], [each[-1] for each in stamps]
        return sum(last) - sum(first) if self.alone else max(last) - max(first)

    @property
    def together(self) -> bool:
        """Whether all trials began at once, as they do where memory is enough for all.

        A GPU's engine begins with one trial where it does not know yet what a slot takes.
        """
        began = [job.began_at for job in self.jobs]
        return self.alone or max(began) - min(began) <= 1

    @property
    def rate(self) -> float:
        """Trial-steps per second."""
        return self.trial_steps / self.seconds

    @property
    def supervised_tokens(self) -> float:
        """Mean of a trial-step."""
        results = [job.ended_as for job in self.jobs]
        return sum(result.tokens for result in results) / sum(result.step for result in results)

    @property
    def peak_bytes(self) -> int:
        """Of the device, or of the whole process on a CPU, while these trials ran."""
        memory = [job.ended_as.memory for job in self.jobs]
        for name in ("allocated_bytes", "rss_bytes"):
            found = [
                peaks.get(f"pack_peak_{name}", peaks.get(f"peak_{name}", 0)) for peaks in memory
            ]
            if any(found):
                return max(found)
        return 0


def run(
    engine: Any,
    specs: Sequence[TrialSpec],
    until: Until | None = None,
    watch: Callable[[int], None] = lambda step: None,
) -> Ran:
    """All trials, on as many slots as the engine has; `watch` follows the first one's reports.

    Raises MemoryError if one runs out of memory, RuntimeError if one fails otherwise.
    """
    rounds = getattr(engine, "rounds", None)
    if rounds is not None and type(rounds.calibration) is Calibration:
        rounds.calibration = Calibration()  # what an earlier run has found out must not help
    with tempfile.TemporaryDirectory() as folder:
        jobs = [
            TimedJob(
                number,
                spec,
                Path(folder, str(number)),
                engine,
                until or Until(),
                watch if number == 0 else lambda step: None,
            )
            for number, spec in enumerate(specs)
        ]
        engine.serve(Queue(deque(jobs)))
    for job in jobs:
        result = job.ended_as
        if result.state is State.FAIL or result.kind == Kind.OUT_OF_MEMORY:
            wrong = MemoryError if result.kind == Kind.OUT_OF_MEMORY else RuntimeError
            raise wrong(f"{result.kind}: {result.error}")
    return Ran(jobs, isinstance(engine, SoloEngine))


def difference(ran: Ran, alone: Ran) -> dict[str, float]:
    """Largest and mean distance of the losses of all steps to those of the same trials alone."""
    distances = [
        abs(loss - expected)
        for job, single in zip(ran.jobs, alone.jobs, strict=False)
        for loss, expected in zip(job.losses, single.losses, strict=False)
    ]
    return {
        "loss_difference_max": max(distances),
        "loss_difference_mean": statistics.mean(distances),
    }
