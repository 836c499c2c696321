"""Before the first trial: what to check on a host, rungs, and how many trials at a time."""

import logging
import math
from collections.abc import Collection

from peft_jobs import SpecError, TrialSpec
from peft_jobs.host.job import Prepared
from peft_jobs.spec import TrainingSpec
from sweeps.search.pruners import reduction_factor
from sweeps.search.samplers import first_learnt
from sweeps.spec import SweepSpec
from sweeps.spec.sample_points import draw_points, drawn_trials

log = logging.getLogger(__name__)

MIN_STEPS = 3
"""Optimizer steps before which no trial is compared: its losses are hardly more than its base's."""
FEW_TRIALS = 20
"""With fewer a pruner is warned of: it saves less than half of the samples, and what it loses is
lost in one sweep of twenty still (`infra/benchmarks/regret.md`); of Optuna's own, one of seven."""
LEARNING_ROUNDS = 4
"""Into so many rounds `slots_per_gpu: auto` divides a sweep that learns from its trials."""


def variants(spec: SweepSpec) -> list[TrialSpec]:
    """Trials of the space that differ in base, task, data, adapter or what they ask of the device:
    what a host must check.

    An adapter's real numbers and its rank fit any base.
    """
    chosen: dict[tuple[str, ...], TrialSpec] = {}
    for trial in drawn_trials(spec):
        adapter = trial.adapter.model_dump(exclude={"r"})
        fields = {name: value for name, value in adapter.items() if not isinstance(value, float)}
        training = trial.training
        device = (training.optim, training.bf16, training.fp16, training.tf32)
        parts = (trial.model, trial.quantization, trial.task, trial.data, fields, device)
        chosen.setdefault(tuple(map(repr, parts)), trial)
    return list(chosen.values())


def sources(spec: SweepSpec) -> dict[str, str]:
    """The saved adapters that the space chooses from, by name: hashes of their files."""
    found = [trial.adapter.source for trial in drawn_trials(spec)]
    return {
        source.name_or_path: str(source.sha256)
        for source in found
        if source is not None and source != spec.trial.adapter.source
    }


def resolve(spec: SweepSpec, prepared: Prepared) -> SweepSpec:
    """The sweep with what the budget comes to: the horizon in samples, and rungs."""
    metric, measured = spec.objective.metric, (*prepared.baseline, *prepared.not_finite)
    if spec.trial.evaluation.metrics and measured and metric not in measured:
        raise SpecError(
            f"objective.metric: {metric!r} is not among what an evaluation of the base gave: "
            f"{', '.join(measured)}"
        )
    samples = max_samples(spec, prepared.train_rows)
    rungs = _rungs(spec, samples)
    if rungs and spec.pruner.type != "none" and spec.budget.n_trials < FEW_TRIALS:
        log.warning(
            "%d trials are few for the pruner %s, which may stop the best of them early: "
            "`pruner: none` trains all to the end",
            *(spec.budget.n_trials, spec.pruner.type),
        )
    if spec.final_of is None and any({"seed"} < point.keys() for point in draw_points(spec)):
        log.warning(
            "seed is in the space: the luckiest will win. Leave it out; `peft-sweep confirm %s` "
            "then trains the best ones again under fresh seeds",
            spec.name,
        )
    params = {"training.max_samples": samples, "evaluation.rungs": list(rungs)}
    return spec.model_copy(update={"trial": spec.trial.with_params(params)})


def _rungs(spec: SweepSpec, samples: int) -> tuple[int, ...]:
    """Those that were asked for, or geometric ones; where a pruner compares trials at them, without
    those at which little was trained.

    Raises SpecError if rungs that were asked for lie beyond the end, or so early.
    """
    given = spec.budget.rungs
    if given and given[-1] >= samples:
        raise SpecError(f"budget.rungs must lie below the {samples} samples of a trial: {given}")
    factor, count = reduction_factor(spec.pruner), spec.budget.num_rungs
    rungs = geometric_rungs(samples, count, factor) if given is None else given
    compares = rungs and spec.pruner.type != "none"
    trainings = {trial.training for trial in drawn_trials(spec)} if compares else set()
    early = {r: told for r in rungs if (told := _too_early(r, samples, trainings)) is not None}
    if early and given is not None:
        raise SpecError(f"budget.rungs: {'; '.join(early.values())}")
    for told in early.values():
        log.warning("left out: %s", told)
    return tuple(rung for rung in rungs if rung not in early)


def _too_early(rung: int, samples: int, trainings: Collection[TrainingSpec]) -> str | None:
    """Why trials must not be compared at a rung, in optimizer steps; None if they may."""
    for training in trainings:
        step = -(-rung // training.samples_per_step)
        warmup: float = training.warmup_steps
        if warmup < 1:
            warmup *= -(-samples // training.samples_per_step)
        if step < MIN_STEPS or step <= math.ceil(warmup):
            return (
                f"the rung at {rung:,} samples is at step {step} of a trial with batches of "
                f"{training.samples_per_step}, which has "
                + (f"{math.ceil(warmup)} steps of warm-up" if warmup else "hardly begun")
                + f"; the first one can be at step {max(MIN_STEPS, math.ceil(warmup) + 1)}"
            )
    return None


def with_slots(spec: SweepSpec, prepared: Prepared, at_once: int) -> SweepSpec:
    """The sweep with what `slots_per_gpu: auto` comes to on a host that has the trials alone, of
    which more than `at_once` are of no use."""
    resources = spec.resources
    if resources.slots_per_gpu != "auto":
        return spec
    slots = min(prepared.slots, at_once)
    resources = resources.model_copy(update={"slots_per_gpu": slots})
    return spec.model_copy(update={"resources": resources})


def trials_at_once(spec: SweepSpec, num_ended: int) -> int:
    """Trials beyond which further ones at the same time are of no use, on however many devices.

    Where a sampler or a pruner learns from the trials before, it must have seen some: a quarter
    of the trials that have not ended, one at least. Otherwise these are all.
    """
    n_trials = spec.budget.n_trials
    left = max(1, n_trials - num_ended)
    compares = spec.pruner.type not in ("none", "threshold")
    first = first_learnt(spec.sampler)
    learns = first is not None and first < n_trials
    return max(1, left // LEARNING_ROUNDS) if compares or learns else left


def max_samples(spec: SweepSpec, train_rows: int) -> int:
    """Samples of a trial that runs to its end."""
    budget = spec.budget
    if budget.max_samples is not None:
        return budget.max_samples
    if budget.max_steps is not None:
        return budget.max_steps * spec.trial.training.samples_per_step
    return max(1, round((budget.num_train_epochs or 1.0) * train_rows))


def geometric_rungs(samples: int, count: int, factor: int) -> tuple[int, ...]:
    """At most `count` rungs below `samples`, each `factor` times the one before.

    The first is samples // factor**count, so successive halving meets exactly these steps.
    """
    fitting = 0
    while fitting < count and samples // factor ** (fitting + 1) >= 1:
        fitting += 1
    first = samples // factor**fitting
    return tuple(first * factor**k for k in range(fitting))
