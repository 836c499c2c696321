"""Trial-steps per second of solo and packed trials on one resident base, measured side by side.

The arms of a cell run one after the other in each repeat, so that a busy machine slows all of them,
and ratios are taken within a repeat. The first step of a trial is not timed. A warm-up of its own
records every step's loss: the packed arms' against those of the same trials alone.
"""

import math
import statistics
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from arms import Arm

from peft_jobs.job import Job
from peft_jobs.packed.calibration import Calibration
from peft_jobs.phases import Phases
from peft_jobs.result import Progress, TrialResult
from peft_jobs.solo import SoloEngine
from peft_jobs.spec import TrialSpec
from peft_jobs.training import SampleOrder

MIN_STEPS, MAX_STEPS = 10, 60


class TimedJob(Job):
    """A trial whose reports are stamped and answered at once."""

    def __init__(self, number: int, spec: TrialSpec, directory: Path, engine: Any) -> None:
        super().__init__(number, 1, spec, directory, None, threading.Condition())
        self._engine = engine
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


@dataclass
class Queue:
    """An inbox that holds all its jobs from the start."""

    jobs: deque[TimedJob]

    def take(self, block: bool = True) -> Job | None:
        return self.jobs.popleft() if self.jobs else None


@dataclass
class Ran:
    """Trials that an arm has run to their ends."""

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
        """Whether all trials began in one step, as they do where memory is enough for all."""
        return self.alone or len({job.began_at for job in self.jobs}) == 1

    @property
    def rate(self) -> float:
        """Trial-steps per second."""
        return self.trial_steps / self.seconds

    @property
    def supervised_tokens(self) -> float:
        """Mean of a trial-step."""
        results = [_result(job) for job in self.jobs]
        steps = sum(result.step for result in results)
        return sum(result.tokens for result in results) / steps

    @property
    def peak_bytes(self) -> int:
        """Of the device, or of the whole process on a CPU, while these trials ran."""
        memory = [_result(job).memory for job in self.jobs]
        for name in ("allocated_bytes", "rss_bytes"):
            found = [
                peaks.get(f"pack_peak_{name}", peaks.get(f"peak_{name}", 0)) for peaks in memory
            ]
            if any(found):
                return max(found)
        return 0


def run(engine: Any, specs: Sequence[TrialSpec]) -> Ran:
    """All trials, on as many slots as the engine has."""
    rounds = getattr(engine, "rounds", None)
    if rounds is not None and type(rounds.calibration) is Calibration:
        rounds.calibration = Calibration()  # what an earlier run has found out must not help
    with tempfile.TemporaryDirectory() as folder:
        jobs = [TimedJob(n, spec, Path(folder, str(n)), engine) for n, spec in enumerate(specs)]
        engine.serve(Queue(deque(jobs)))
    for job in jobs:
        result = _result(job)
        if result.state != "COMPLETE":
            raise (MemoryError if result.kind == "out_of_memory" else RuntimeError)(result.error)
    return Ran(jobs, isinstance(engine, SoloEngine))


def _result(job: TimedJob) -> TrialResult:
    if job.result is None:
        raise RuntimeError(f"trial {job.trial} has not ended")
    return job.result


@dataclass(frozen=True)
class Cells:
    """What is measured: a trial at one number of tokens, for several K."""

    spec: TrialSpec
    slots: Sequence[int]
    repeats: int
    seconds: float
    """To be spent on each arm in each repeat, about."""
    warm_steps: int
    compared: int
    """Trials whose losses are compared with the same trials alone."""

    def trials(self, num: int, num_steps: int, every_step: bool = False) -> list[TrialSpec]:
        return [
            self.spec.with_params(
                {
                    "seed": seed,
                    "training.max_steps": num_steps,
                    "training.logging_steps": 1 if every_step else num_steps,
                }
            )
            for seed in range(num)
        ]


def measure(cells: Cells, arms: Sequence[Arm]) -> Iterator[dict[str, Any]]:
    """One measurement for each K, arm and repeat, as it comes.

    The first arm is the one that losses are compared with. Solo arms run one trial. An arm for
    which memory runs out gives one measurement with the reason in `failed`.
    """
    reference = arms[0]
    most = min(cells.compared, max(cells.slots))
    alone = run(reference.engine, cells.trials(most, cells.warm_steps, True))
    for num_slots in cells.slots:
        ready: list[tuple[Arm, Any, int, dict[str, Any]]] = []
        for arm in arms:
            trials = 1 if arm.is_solo else num_slots
            engine, warm = arm.make(arm.engine, trials), alone
            try:
                if arm is not reference:
                    warm = run(engine, cells.trials(trials, cells.warm_steps, True))
            except (MemoryError, torch.OutOfMemoryError) as error:
                yield {"arm": arm.name, "slots": num_slots, "failed": str(error)[:200]}
                continue
            cell = {
                "supervised_tokens": warm.supervised_tokens,
                **tokens_of(arm, cells, trials),
                **({} if arm is reference else difference(warm, alone)),
            }
            steps = round(cells.seconds * warm.rate / trials)
            ready.append((arm, engine, min(max(steps, MIN_STEPS), MAX_STEPS), cell))
        for repeat in range(cells.repeats):
            for arm, engine, steps, cell in ready:
                ran = run(engine, cells.trials(1 if arm.is_solo else num_slots, steps))
                if not ran.together:
                    failed = f"{num_slots} trials do not fit into memory"
                    yield {"arm": arm.name, "slots": num_slots, "failed": failed}
                    continue
                yield {
                    "arm": arm.name,
                    "slots": num_slots,
                    "repeat": repeat,
                    "seconds": ran.seconds,
                    "processor_seconds": ran.processor_seconds,
                    "trial_steps": ran.trial_steps,
                    "peak_bytes": ran.peak_bytes,
                    **cell,
                }


def difference(ran: Ran, alone: Ran) -> dict[str, float]:
    """Largest and mean distance of the losses of all steps to those of the same trials alone."""
    distances = [
        abs(loss - expected)
        for job, single in zip(ran.jobs, alone.jobs, strict=False)
        for loss, expected in zip(job.losses, single.losses, strict=True)
    ]
    return {
        "loss_difference_max": max(distances),
        "loss_difference_mean": statistics.mean(distances),
    }


def tokens_of(arm: Arm, cells: Cells, num_trials: int) -> dict[str, float]:
    """Tokens of a trial-step in the warm-up, as they are and as they are padded."""
    spec, steps = cells.spec, cells.warm_steps
    _, data = arm.engine._resident.get(spec, Phases())
    lengths = [len(row) for row in data.train["input_ids"]]
    rows = spec.training.samples_per_step
    batches = [
        [lengths[row] for row in SampleOrder(seed, len(lengths), steps * rows)]
        for seed in range(num_trials)
    ]
    real = padded = 0
    for start in range(0, steps * rows, rows):
        step = [lengths_of[start : start + rows] for lengths_of in batches]
        real += sum(map(sum, step))
        padded += num_trials * rows * max(map(max, step))
    return {"real_tokens": real / steps / num_trials, "padded_tokens": padded / steps / num_trials}
