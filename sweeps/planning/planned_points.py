"""Single points of a plan: what their steps take, and what would make them fit."""

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
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


def told_of(trials: Sequence[TrialSpec], most_shapes: int) -> list[TrialSpec]:
    """Those that steps of so many different shapes tell of."""
    found: list[TrialSpec] = load("peft_jobs.prediction.shapes:with_few_shapes")(
        trials, most_shapes
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
    sizes = {n: p.peak_bytes for n, p in enumerate(found) if not p.fits}
    too_large = {n: trials[n] for n in sorted(sizes, key=lambda n: -sizes[n])}
    remedies = _remedies(too_large, device, rows, mapped)
    points = []
    for number, (trial, prediction) in enumerate(zip(trials, found, strict=True)):
        params = flatten(trial)
        points.append(
            PlannedPoint(
                params={name: params[name] for name in names if name in params},
                peak_bytes=prediction.peak_bytes,
                trainable_parameters=prediction.trainable_parameters,
                fits=prediction.fits,
                remedy=remedies.get(number),
            )
        )
    return points


def _remedies(
    trials: Mapping[int, TrialSpec], device: Device, rows: Rows, mapped: Mapped
) -> dict[int, str]:
    """For trials that do not fit, the largest first, settings with which they fit: those that the
    largest one that can be helped would find by itself, also for the smaller ones that begin with
    the same settings."""
    alike: dict[MemorySettings, list[int]] = {}
    for number, trial in trials.items():
        alike.setdefault(settings_of(trial), []).append(number)
    found: dict[int, str] = {}
    for given, numbers in alike.items():
        rungs = list(_rungs(given))
        fit = partial(_fit, device, rows, mapped)
        first, enough = _helped([trials[number] for number in numbers], rungs, fit)
        if enough is not None:
            found |= dict.fromkeys(numbers[first:], _changes(given, enough))
    return found


def _helped(
    trials: Sequence[TrialSpec],
    rungs: Sequence[MemorySettings],
    fit: Callable[[TrialSpec, Sequence[MemorySettings]], list[MemorySettings]],
) -> tuple[int, MemorySettings | None]:
    """The place of the first of the trials that fits with some of the settings, and the first of
    those; trials that follow fit wherever it does."""
    first, enough = 0, fit(trials[0], rungs)
    if not enough:
        last = rungs[-1:]
        first = bisect_left(trials, 1, key=lambda trial: len(fit(trial, last)))
        enough = fit(trials[first], rungs) if first < len(trials) else []
    return first, next(iter(enough), None)


def _fit(
    device: Device,
    rows: Rows,
    mapped: Mapped,
    trial: TrialSpec,
    rungs: Sequence[MemorySettings],
) -> list[MemorySettings]:
    """Those of the settings with which the trial fits."""
    told = predicted([with_settings(trial, r) for r in rungs], device, rows, mapped=mapped)
    return [rung for rung, each in zip(rungs, told, strict=True) if each.fits]


def _rungs(settings: MemorySettings) -> Iterator[MemorySettings]:
    """The settings below, down to the last."""
    lower = below(settings, "train")
    while lower is not None:
        yield lower
        lower = below(lower, "train")


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
