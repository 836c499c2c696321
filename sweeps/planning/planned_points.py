"""Single points of a plan: what their steps take, and what would make them fit."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from peft_jobs import SpecError, TrialSpec
from peft_jobs.host.gpus import Device
from peft_jobs.host.prediction import Lengths, Prediction
from peft_jobs.references import load
from peft_jobs.spec.dotted import flatten
from peft_jobs.spec.memory_settings import MemorySettings, below, settings_of, with_settings
from sweeps.planning.processes import Mapped
from sweeps.spec import SweepSpec

How = Literal["exact", "predicted", "assumed"]


@dataclass(frozen=True)
class Rows:
    """What a plan must know of the data."""

    train: int
    validation: int
    mean_tokens: float
    longest_tokens: int
    how: How

    @property
    def lengths(self) -> Lengths:
        """For a prediction, which takes all tokens to count."""
        longest = self.longest_tokens
        return Lengths(tokens=longest, supervised=longest, mean_tokens=self.mean_tokens)


@dataclass(frozen=True)
class PlannedPoint:
    """A point of the space, and what its steps take."""

    params: dict[str, Any]
    """Those that vary."""
    peak_bytes: int
    trainable_parameters: int
    fits: bool
    remedy: str | None
    """For one that does not fit, settings with which it would; None if there are none."""


@dataclass(frozen=True)
class PlannedRung:
    """A comparison, in samples and in optimizer steps of the points."""

    samples: int
    steps: tuple[int, int]
    """Fewest and most."""
    in_warmup: bool
    """Whether some point is still warming up there."""


def predicted(
    trials: Sequence[TrialSpec],
    device: Device,
    rows: Rows,
    slots: int = 1,
    *,
    mapped: Mapped = map,
) -> list[Prediction]:
    """What each of them takes; see `peft_jobs.prediction.predict`."""
    found: list[Prediction] = load("peft_jobs.prediction.predict:predict")(
        trials, device, rows.lengths, slots=slots, mapped=mapped
    )
    return found


def shared(
    alone: Prediction,
    trial: TrialSpec,
    device: Device,
    rows: Rows,
    most: int,
    spec: SweepSpec,
    mapped: Mapped = map,
) -> tuple[int, float]:
    """Trials like this one that share a GPU, up to `most`, and how much faster they are together.

    Memory and time are taken as affine in their number, from steps of two and of four.
    """
    given = spec.resources.slots_per_gpu
    if spec.resources.engine != "packed" or most < 2 or not alone.fits or given == 1:
        return 1, 1.0
    try:
        two, four = mapped(partial(_packed, trial, device, rows), (2, 4))
    except SpecError:  # such trials run alone
        return 1, 1.0
    each = max(1.0, (four.peak_bytes - two.peak_bytes) / 2)
    room = 2 + math.floor((device.usable_bytes - two.peak_bytes) / each)
    slots = max(1, min(most, room, most if given == "auto" else given))
    per_slot = (four.seconds_per_step - two.seconds_per_step) / 2
    together = two.seconds_per_step + (slots - 2) * per_slot
    gain = slots * alone.seconds_per_step / together if slots > 1 else 1.0
    return (slots, gain) if gain > 1 else (1, 1.0)


def _packed(trial: TrialSpec, device: Device, rows: Rows, slots: int) -> Prediction:
    return predicted([trial], device, rows, slots)[0]


def planned(
    trials: Sequence[TrialSpec],
    found: Sequence[Prediction],
    names: Sequence[str],
    device: Device,
    rows: Rows,
    mapped: Mapped = map,
) -> list[PlannedPoint]:
    """Trials as a plan shows them, with `names` of what varies."""
    too_large = [t for t, p in zip(trials, found, strict=True) if not p.fits]
    remedies = _remedies(too_large, device, rows, mapped)
    points = []
    for trial, prediction in zip(trials, found, strict=True):
        params = flatten(trial)
        points.append(
            PlannedPoint(
                params={name: params[name] for name in names if name in params},
                peak_bytes=prediction.peak_bytes,
                trainable_parameters=prediction.trainable_parameters,
                fits=prediction.fits,
                remedy=None if prediction.fits else next(remedies),
            )
        )
    return points


def _remedies(
    trials: Sequence[TrialSpec], device: Device, rows: Rows, mapped: Mapped
) -> Iterator[str | None]:
    """For each trial the next smaller settings with which it fits: those that it would find by
    itself. All are tried together: they share what their shapes have in common."""
    given = [settings_of(trial) for trial in trials]
    found: dict[int, MemorySettings] = {}
    left = dict(enumerate(given))
    while lower := {n: s for n, old in left.items() if (s := below(old, "train")) is not None}:
        smaller = [with_settings(trials[n], settings) for n, settings in lower.items()]
        fit = [each.fits for each in predicted(smaller, device, rows, mapped=mapped)]
        found |= {n: lower[n] for n, fits in zip(lower, fit, strict=True) if fits}
        left = {n: settings for n, settings in lower.items() if n not in found}
    return (_changes(given[n], found[n]) if n in found else None for n in range(len(trials)))


def _changes(before: MemorySettings, after: MemorySettings) -> str:
    known = before.model_dump()
    changed = {name: value for name, value in after.model_dump().items() if value != known[name]}
    return ", ".join(f"training.{name}={value}" for name, value in changed.items())


def rung_of(rung: int, samples: int, trials: Sequence[TrialSpec]) -> PlannedRung:
    """A comparison at so many of a trial's `samples`, in the steps of all trials."""
    batches = [trial.training.samples_per_step for trial in trials]
    steps = [-(-rung // batch) for batch in batches]
    warmups = [
        warmup if (warmup := trial.training.warmup_steps) >= 1 else warmup * samples / batch
        for trial, batch in zip(trials, batches, strict=True)
    ]
    inside = any(step <= warmup for step, warmup in zip(steps, warmups, strict=True))
    return PlannedRung(rung, (min(steps), max(steps)), inside)
