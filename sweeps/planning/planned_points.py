"""Single points of a plan: what their steps take, and what would make them fit."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from peft_jobs import SpecError, TrialSpec
from peft_jobs.host.gpus import Device
from peft_jobs.host.prediction import Prediction
from peft_jobs.references import load
from peft_jobs.spec.dotted import flatten
from peft_jobs.spec.memory_settings import below, settings_of, with_settings
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


def predicted(trials: Sequence[TrialSpec], device: Device, rows: Rows) -> list[Prediction]:
    """What each of them takes alone; see `peft_jobs.prediction.predict`."""
    found: list[Prediction] = load("peft_jobs.prediction.predict:predict")(
        trials, device, rows.longest_tokens
    )
    return found


def shared(
    alone: Prediction, trial: TrialSpec, device: Device, rows: Rows, most: int, spec: SweepSpec
) -> tuple[int, float]:
    """Trials like this one that share a GPU, up to `most`, and how much faster they are together.

    Memory and time are taken as affine in their number, from steps of two and of four.
    """
    given = spec.resources.slots_per_gpu
    if spec.resources.engine != "packed" or most < 2 or not alone.fits or given == 1:
        return 1, 1.0
    predict = load("peft_jobs.prediction.predict:predict")
    try:
        two, four = (
            predict([trial], device, rows.longest_tokens, slots=slots)[0] for slots in (2, 4)
        )
    except SpecError:  # such trials run alone
        return 1, 1.0
    each = max(1.0, (four.peak_bytes - two.peak_bytes) / 2)
    room = 2 + math.floor((device.usable_bytes - two.peak_bytes) / each)
    slots = max(1, min(most, room, most if given == "auto" else given))
    per_slot = (four.seconds_per_step - two.seconds_per_step) / 2
    together = two.seconds_per_step + (slots - 2) * per_slot
    gain = slots * alone.seconds_per_step / together if slots > 1 else 1.0
    return (slots, gain) if gain > 1 else (1, 1.0)


def planned(
    trial: TrialSpec, found: Prediction, names: Sequence[str], device: Device, rows: Rows
) -> PlannedPoint:
    """A trial as a plan shows it, with `names` of what varies."""
    params = flatten(trial)
    return PlannedPoint(
        params={name: params[name] for name in names if name in params},
        peak_bytes=found.peak_bytes,
        trainable_parameters=found.trainable_parameters,
        fits=found.fits,
        remedy=None if found.fits else _remedy(trial, device, rows),
    )


def _remedy(trial: TrialSpec, device: Device, rows: Rows) -> str | None:
    """The next smaller settings with which a trial fits: those that it would find by itself."""
    before = settings = settings_of(trial)
    while (smaller_settings := below(settings, "train")) is not None:
        settings = smaller_settings
        smaller = with_settings(trial, settings)
        if predicted([smaller], device, rows)[0].fits:
            known = before.model_dump()
            changed = {k: v for k, v in settings.model_dump().items() if v != known[k]}
            return ", ".join(f"training.{name}={value}" for name, value in changed.items())
    return None


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
