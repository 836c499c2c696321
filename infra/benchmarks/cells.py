"""Trial-steps per second of solo and packed trials on one resident base, measured side by side.

The arms, at all numbers of slots, run one after the other in each repeat, so that a busy machine
slows all of them, and ratios are taken within a repeat. The first step of a trial is not timed. A
warm-up of its own records every step's loss: the other arms' against those of the same trials
alone.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from arms import Arm
from runs import Ran, Until, difference, run

from peft_jobs.data.sample_order import SampleOrder
from peft_jobs.phases import Phases
from peft_jobs.spec import TrialSpec

MAX_STEPS = 60
CALIBRATED_STEPS = 100
"""Least steps where the engine has to find out the number of slots on the way, once a trial."""
WARMING = 0.5
"""Of the time, after which no more cells are warmed up."""


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
    min_steps: int = 10
    longest: float = math.inf
    """Seconds of a run; what would take longer is not measured, and says so."""
    deadline: float = math.inf
    """Of `time.monotonic`; no run begins after it."""

    def trials(self, num: int, every: int) -> list[TrialSpec]:
        """Trials without an end that report their first step and every so many."""
        endless = {"training.max_steps": 10**4, "training.logging_steps": every}
        return [self.spec.with_params({"seed": seed, **endless}) for seed in range(num)]

    def until(self, step: int) -> Until:
        return Until(step, time.monotonic() + self.longest)


@dataclass
class Entry:
    """An arm at a number of slots: what a repeat runs."""

    arm: Arm
    slots: int
    engine: Any
    steps: int = 0
    cell: dict[str, Any] = field(default_factory=dict)
    """What all its measurements say."""

    @property
    def name(self) -> dict[str, Any]:
        return {"arm": self.arm.name, "slots": self.slots}


def measure(cells: Cells, arms: Sequence[Arm]) -> Iterator[dict[str, Any]]:
    """One measurement for each arm, K and repeat, as it comes.

    The first arm is the one that losses are compared with. Solo arms run one trial. A cell that
    cannot be measured gives one measurement with the reason in `failed`.
    """
    began = time.monotonic()
    warm_until = began + WARMING * (cells.deadline - began)
    alone = run(
        arms[0].engine,
        cells.trials(min(cells.compared, max(cells.slots)), 1),
        Until(cells.warm_steps),
    )
    ready: list[Entry] = []
    for arm in arms:
        for slots in arm.numbers(cells.slots):
            entry = Entry(arm, slots, arm.make(arm.engine, slots))
            failed = "not reached" if time.monotonic() > warm_until else ""
            failed = failed or warmed(entry, cells, alone, is_first=arm is arms[0])
            if failed:
                yield {**entry.name, "failed": failed}
            else:
                ready.append(entry)
    for repeat in range(cells.repeats):
        for entry in list(ready):
            if time.monotonic() > cells.deadline:
                if repeat == 0:
                    yield {**entry.name, "failed": "not reached"}
                continue
            ran, failed = attempted(entry, cells, entry.steps, entry.steps)
            if ran is None:
                ready.remove(entry)
                yield {**entry.name, "failed": failed}
                continue
            yield {
                **entry.name,
                "repeat": repeat,
                "seconds": ran.seconds,
                "processor_seconds": ran.processor_seconds,
                "trial_steps": ran.trial_steps,
                "peak_bytes": ran.peak_bytes,
                **entry.cell,
            }


def warmed(entry: Entry, cells: Cells, alone: Ran, is_first: bool) -> str:
    """Find out what a repeat of the entry is to be; why there will be none, if so."""
    ran, failed = (alone, "") if is_first else attempted(entry, cells, cells.warm_steps, 1)
    if ran is None:
        return failed
    least = cells.min_steps if entry.arm.is_fixed else CALIBRATED_STEPS
    rate = ran.rate / entry.slots
    if least / rate > cells.longest:
        return f"{least} steps would take {least / rate:.0f} s"
    entry.steps = max(min(round(cells.seconds * rate), MAX_STEPS), least)
    entry.cell = {"supervised_tokens": ran.supervised_tokens, **tokens_of(entry, cells)}
    entry.cell |= {} if is_first else difference(ran, alone)
    return ""


def attempted(entry: Entry, cells: Cells, steps: int, every: int) -> tuple[Ran | None, str]:
    """So many steps of the entry's trials; or why they cannot be had."""
    try:
        ran = run(entry.engine, cells.trials(entry.slots, every), cells.until(steps))
        if not ran.together:  # a GPU's engine knows now what a slot takes
            ran = run(entry.engine, cells.trials(entry.slots, every), cells.until(steps))
    except (MemoryError, torch.OutOfMemoryError):
        return None, "out of memory"
    except RuntimeError as error:
        return None, str(error).strip().splitlines()[0][:200]
    if not ran.together:
        return None, f"out of memory: {entry.slots} trials do not fit"
    return ran, ""


def tokens_of(entry: Entry, cells: Cells) -> dict[str, float]:
    """Tokens of a trial-step in the warm-up, as they are and as they are padded."""
    spec, steps = cells.spec, cells.warm_steps
    _, data = entry.arm.engine._resident.get(spec, Phases())
    lengths = [len(row) for row in data.train["input_ids"]]
    rows = spec.training.samples_per_step
    batches = [
        [lengths[row] for row in SampleOrder(seed, len(lengths), steps * rows)]
        for seed in range(entry.slots)
    ]
    real = padded = 0
    for start in range(0, steps * rows, rows):
        step = [lengths_of[start : start + rows] for lengths_of in batches]
        real += sum(map(sum, step))
        padded += entry.slots * rows * max(map(max, step))
    return {
        "real_tokens": real / steps / entry.slots,
        "padded_tokens": padded / steps / entry.slots,
    }
