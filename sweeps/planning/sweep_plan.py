"""The plan of a sweep: what it will take of memory, time, money and disk, and what it will do."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import mean
from typing import Any, Literal

from peft_jobs import SpecError, TrialSpec
from peft_jobs.host.gpus import Device
from peft_jobs.host.job import Prepared
from peft_jobs.host.prediction import Prediction
from peft_jobs.references import load
from peft_jobs.spec.dotted import flatten
from peft_jobs.spec.memory_settings import below, settings_of, with_settings
from sweeps.planning.costs import Costs, TrialSeconds, costs
from sweeps.planning.points import points_of
from sweeps.search.samplers import first_learnt
from sweeps.search.survival import Survival, survival
from sweeps.spec import SweepSpec
from sweeps.spec.plan import resolve, trials_at_once
from sweeps.spec.sample_points import varying_names

How = Literal["exact", "predicted", "assumed"]
MOST_POINTS = 32
"""Distinct points whose steps are predicted."""
EVALUATION_SHARE = 1 / 3
"""Of a training step's time, what the forward pass alone takes of a row: the backward pass takes
two such (Kaplan et al. 2020, arXiv 2001.08361, section 2.1)."""
STARTING_SECONDS = 120.0
"""Of a host: imports, loading and quantizing the base. Assumed."""
SPREAD = 2.0
"""A device reaches between its predicted speed times this and divided by this. Assumed until
finished trials of the machine say more."""


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


@dataclass(frozen=True)
class SweepPlan:
    """All that is told of a sweep before it is launched."""

    name: str
    n_trials: int
    device: Device
    num_gpus: int
    rows: Rows
    max_samples: int
    steps: tuple[int, int]
    rungs: tuple[PlannedRung, ...]
    points: tuple[PlannedPoint, ...]
    """By memory, the smallest first."""
    turned_away: Mapping[str, float]
    distinct_points: int | None
    trials_per_gpu: int
    """That share its memory, as predicted for the largest point that fits."""
    seconds_per_trial: tuple[float, float, float]
    """Of a GPU, to the end: fastest, mean and slowest point that fits; as its share where trials
    share the GPU."""
    survival: Survival
    costs: Costs
    adapter_bytes: tuple[int, int]
    """Of one, smallest and largest."""
    checkpoint_bytes: tuple[int, int]

    @property
    def fitting(self) -> list[PlannedPoint]:
        return [point for point in self.points if point.fits]

    @property
    def disk_bytes(self) -> float:
        """Adapters of the trials that complete, in the storage and in MLflow, and two checkpoints
        of each trial that runs."""
        complete = math.ceil(self.n_trials * self.survival.complete.expected)
        running = self.trials_per_gpu * self.num_gpus
        return 2 * complete * self.adapter_bytes[1] + 2 * running * self.checkpoint_bytes[1]

    def to_json(self) -> dict[str, Any]:
        return {
            **asdict(replace(self, device=self.device.name)),  # type: ignore[arg-type]
            "gpu_memory_bytes": self.device.memory_bytes,
            "disk_bytes": self.disk_bytes,
            "how": {
                "exact": ["n_trials", "rungs", "distinct_points", "trainable_parameters"],
                "predicted": ["peak_bytes", "trials_per_gpu", "survival", "turned_away"],
                "assumed": ["seconds_per_trial", "costs"],
            },
        }


def plan_sweep(
    spec: SweepSpec,
    device: Device,
    num_gpus: int,
    rows: Rows,
    usd_per_gpu_hour: float | None = None,
) -> SweepPlan:
    """The plan of a sweep on so many GPUs. SpecError where no point of it can be trained, or the
    configuration of its base cannot be read."""
    space = points_of(spec)
    if not space.trials:
        raise SpecError("no random point of the space may be launched")
    trials = space.trials[:MOST_POINTS]
    predictions = _predicted(trials, device, rows)
    names = varying_names(spec)
    pairs = list(zip(trials, predictions, strict=True))
    planned = [_planned(one, found, names, device, rows) for one, found in pairs]
    trial = resolve(spec, Prepared(train_rows=rows.train)).trial
    samples, rungs = trial.training.max_samples or 1, trial.evaluation.rungs
    fits = [p for p in predictions if p.fits] or list(predictions)
    one, alone = max(pairs, key=lambda pair: _order(pair[1]))
    at_once = max(num_gpus, trials_at_once(spec, 0))
    per_gpu, gain = _shared(alone, one, device, rows, -(-at_once // num_gpus), spec)
    at_once = min(per_gpu * num_gpus, at_once)
    scale = rows.mean_tokens / rows.longest_tokens / gain
    seconds = sorted(p.seconds_per_sample * scale * samples for p in fits)
    known = (spec.pruner, spec.budget.n_trials, samples, rungs, at_once)
    left = survival(*known, first_learnt(spec.sampler))
    evaluation = mean(seconds) / samples * rows.validation * EVALUATION_SHARE
    price = spec.budget.usd_per_gpu_hour if usd_per_gpu_hour is None else usd_per_gpu_hour
    batches = [trial.training.samples_per_step for trial in trials]
    return SweepPlan(
        name=spec.name,
        n_trials=spec.budget.n_trials,
        device=device,
        num_gpus=num_gpus,
        rows=rows,
        max_samples=samples,
        steps=(samples // max(batches), -(-samples // min(batches))),
        rungs=tuple(_rung(rung, samples, trials) for rung in rungs),
        points=tuple(sorted(planned, key=lambda point: point.peak_bytes)),
        turned_away=space.turned_away,
        distinct_points=space.size,
        trials_per_gpu=max(1, at_once // num_gpus),
        seconds_per_trial=(seconds[0], mean(seconds), seconds[-1]),
        survival=left,
        costs=costs(
            spec.budget.n_trials,
            TrialSeconds(mean(seconds), evaluation),
            left,
            num_gpus,
            STARTING_SECONDS,
            price,
            SPREAD,
        ),
        adapter_bytes=_ends(p.adapter_bytes for p in predictions),
        checkpoint_bytes=_ends(p.checkpoint_bytes for p in predictions),
    )


def _predicted(trials: Sequence[TrialSpec], device: Device, rows: Rows) -> list[Prediction]:
    found: list[Prediction] = load("peft_jobs.prediction.predict:predict")(
        trials, device, rows.longest_tokens
    )
    return found


def _order(prediction: Prediction) -> tuple[bool, int]:
    """Sorts the largest one that fits last."""
    return prediction.fits, prediction.peak_bytes


def _shared(
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


def _planned(
    trial: TrialSpec, found: Prediction, names: Sequence[str], device: Device, rows: Rows
) -> PlannedPoint:
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
        if _predicted([smaller], device, rows)[0].fits:
            known = before.model_dump()
            changed = {k: v for k, v in settings.model_dump().items() if v != known[k]}
            return ", ".join(f"training.{name}={value}" for name, value in changed.items())
    return None


def _rung(rung: int, samples: int, trials: Sequence[TrialSpec]) -> PlannedRung:
    batches = [trial.training.samples_per_step for trial in trials]
    steps = [-(-rung // batch) for batch in batches]
    warmups = [
        warmup if (warmup := trial.training.warmup_steps) >= 1 else warmup * samples / batch
        for trial, batch in zip(trials, batches, strict=True)
    ]
    inside = any(step <= warmup for step, warmup in zip(steps, warmups, strict=True))
    return PlannedRung(rung, (min(steps), max(steps)), inside)


def _ends(values: Iterable[int]) -> tuple[int, int]:
    found = list(values)
    return min(found), max(found)
