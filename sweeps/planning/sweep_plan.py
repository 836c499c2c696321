"""The plan of a sweep: what it will take of memory, time, money and disk, and what it will do."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from statistics import mean
from typing import Any

from peft_jobs import SpecError
from peft_jobs.host.gpus import GPUS, Device
from peft_jobs.host.job import Prepared
from peft_jobs.host.prediction import Prediction
from peft_jobs.references import load
from sweeps.planning.costs import Costs, TrialSeconds, costs
from sweeps.planning.downloads import Download, downloads
from sweeps.planning.planned_points import (
    PlannedPoint,
    PlannedRung,
    Rows,
    planned,
    predicted,
    rung_of,
    shared,
    told_of,
)
from sweeps.planning.points import points_of
from sweeps.planning.processes import Mapped
from sweeps.results.prediction_error import PredictionError
from sweeps.search.samplers import first_learnt
from sweeps.search.survival import Survival, survival
from sweeps.spec import SweepSpec
from sweeps.spec.plan import resolve, trials_at_once
from sweeps.spec.sample_points import varying_names

MOST_SHAPES = 32
"""Of steps that are run: all points are predicted that these tell of."""
EVALUATION_SHARE = 1 / 3
"""Of a training step's time, what the forward pass alone takes of a row: the backward pass takes
two such (Kaplan et al. 2020, arXiv 2001.08361, section 2.1)."""
STARTING_SECONDS = 120.0
"""Of a host: imports, loading and quantizing the base. Assumed."""
SPREAD = 2.0
"""A device reaches between its predicted speed times this and divided by this. Assumed until
finished trials of the machine say more."""

_EXACT = [
    *("n_trials", "rungs", "distinct_points", "trainable_parameters", "targets", "downloads"),
]
"""What follows from the file, the configuration of the base, and the Hub's metadata."""
MIN_SPREAD = 1.1
"""Of few trials that agree, too."""


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
    repeated: float
    """Of random points that may be launched, the share that had been drawn before."""
    targets: tuple[Mapping[str, Any], ...]
    """What each choice of modules stands for; see `peft_jobs.methods.matched_modules`."""
    downloads: tuple[Download, ...]
    trials_per_gpu: int
    """That share its memory, as predicted for the largest point that fits."""
    seconds_per_trial: tuple[float, float, float]
    """Of a GPU, to the end: fastest, mean and slowest point that fits; as its share where trials
    share the GPU."""
    survival: Survival
    costs: Costs
    spread: float
    """The sweep takes between its predicted time divided by this and times this."""
    learned: PredictionError | None
    """What finished trials on such a device say of predictions."""
    adapter_bytes: tuple[int, int]
    """Of one, smallest and largest."""
    checkpoint_bytes: tuple[int, int]

    @property
    def fitting(self) -> list[PlannedPoint]:
        return [point for point in self.points if point.fits]

    @property
    def gpus_that_fit(self) -> list[str]:
        """Of the table, those with memory for the largest point, the smallest first."""
        needed = self.points[-1].peak_bytes
        fit = [gpu for gpu in GPUS.values() if gpu.usable_bytes >= needed]
        return [gpu.name for gpu in sorted(fit, key=lambda gpu: gpu.memory_bytes)]

    def trials_in(self, hours: float) -> tuple[int, int]:
        """Trials that so many hours are enough for, from and to."""
        start, whole = STARTING_SECONDS / 3600, self.costs.hours
        share = [max(0.0, hours - start) / (each - start) for each in (whole.high, whole.low)]
        slow, fast = (math.floor(self.n_trials * each) for each in share)
        return slow, fast

    @property
    def disk_bytes(self) -> float:
        """Adapters of the trials that complete, in the storage and in MLflow, and two checkpoints
        of each trial that runs."""
        complete = math.ceil(self.n_trials * self.survival.complete.expected)
        running = self.trials_per_gpu * self.num_gpus
        return 2 * complete * self.adapter_bytes[1] + 2 * running * self.checkpoint_bytes[1]

    def to_json(self) -> dict[str, Any]:
        times = ["seconds_per_trial", "costs"]
        predicted = ["peak_bytes", "trials_per_gpu", "survival", "turned_away", "repeated"]
        predicted += ["disk_bytes", "adapter_bytes", "checkpoint_bytes", "gpus_that_fit"]
        return {
            **asdict(replace(self, device=self.device.name)),  # type: ignore[arg-type]
            "gpu_memory_bytes": self.device.memory_bytes,
            "disk_bytes": self.disk_bytes,
            "gpus_that_fit": self.gpus_that_fit,
            "how": {
                "exact": _EXACT,
                "predicted": predicted if self.learned is None else [*predicted, *times],
                "assumed": times if self.learned is None else [],
                "measured": [] if self.learned is None else ["learned"],
            },
        }


def plan_sweep(
    spec: SweepSpec,
    device: Device,
    num_gpus: int,
    rows: Rows,
    usd_per_gpu_hour: float | None = None,
    learned: PredictionError | None = None,
    mapped: Mapped = map,
) -> SweepPlan:
    """The plan of a sweep on so many GPUs, whose speed is `learned` if it is known; steps are tried
    by `mapped`. SpecError where no point of it can be trained, or the configuration of its base
    cannot be read."""
    if learned is not None:
        device = device.model_copy(update={"efficiency": learned.efficiency})
    spread = SPREAD if learned is None else max(MIN_SPREAD, learned.spread)
    space = points_of(spec)
    if not space.trials:
        raise SpecError("no random point of the space may be launched")
    trials = told_of(space.trials, MOST_SHAPES)
    predictions = predicted(trials, device, rows, mapped=mapped)
    planned_points = planned(trials, predictions, varying_names(spec), device, rows, mapped)
    trial = resolve(spec, Prepared(train_rows=rows.train)).trial
    samples, rungs = trial.training.max_samples or 1, trial.evaluation.rungs
    fits = [p for p in predictions if p.fits] or list(predictions)
    one, alone = max(zip(trials, predictions, strict=True), key=lambda pair: _order(pair[1]))
    at_once = max(num_gpus, trials_at_once(spec, 0))
    per_gpu, gain = shared(alone, one, device, rows, -(-at_once // num_gpus), spec, mapped)
    at_once = min(per_gpu * num_gpus, at_once)
    seconds = sorted(p.seconds_per_sample / gain * samples for p in fits)
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
        rungs=tuple(rung_of(rung, samples, trials) for rung in rungs),
        points=tuple(sorted(planned_points, key=lambda point: point.peak_bytes)),
        turned_away=space.turned_away,
        distinct_points=space.size,
        repeated=space.repeated,
        targets=tuple(load("peft_jobs.methods.matched_modules:matched_modules")(space.trials)),
        downloads=tuple(downloads(space.trials)),
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
            spread,
        ),
        spread=spread,
        learned=learned,
        adapter_bytes=_ends(p.adapter_bytes for p in predictions),
        checkpoint_bytes=_ends(p.checkpoint_bytes for p in predictions),
    )


def _order(prediction: Prediction) -> tuple[bool, int]:
    """Sorts the largest one that fits last."""
    return prediction.fits, prediction.peak_bytes


def _ends(values: Iterable[int]) -> tuple[int, int]:
    found = list(values)
    return min(found), max(found)
