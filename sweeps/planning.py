"""Before the first trial: what to check on a host, and the rungs that follow from the budget."""

from peft_jobs import SpecError, TrialSpec
from peft_jobs.job import Prepared
from sweeps.checks import draw_points
from sweeps.pruners import reduction_factor
from sweeps.spec import SweepSpec


def variants(spec: SweepSpec) -> list[TrialSpec]:
    """Trials of the space that differ in base, task, data or targets: what a host must check."""
    chosen: dict[tuple[str, ...], TrialSpec] = {}
    for point in draw_points(spec):
        trial = spec.trial.with_params(point)
        parts = (
            trial.model,
            trial.quantization,
            trial.task,
            trial.data,
            trial.adapter.method,
            trial.adapter.target_modules,
            trial.adapter.modules_to_save,
        )
        chosen.setdefault(tuple(map(repr, parts)), trial)
    return list(chosen.values())


def resolve(spec: SweepSpec, prepared: Prepared) -> SweepSpec:
    """The sweep with what `auto` and the budget come to: slots, the horizon in samples, rungs."""
    metric, measured = spec.objective.metric, prepared.baseline
    if spec.trial.evaluation.metrics and measured and metric not in measured:
        raise SpecError(
            f"objective.metric: {metric!r} is not among what an evaluation of the base gave: "
            f"{', '.join(measured)}"
        )
    samples = max_samples(spec, prepared.train_rows)
    rungs = spec.budget.rungs
    if rungs is None:
        rungs = geometric_rungs(samples, spec.budget.num_rungs, reduction_factor(spec.pruner))
    if rungs and rungs[-1] >= samples:
        raise SpecError(f"budget.rungs must lie below the {samples} samples of a trial: {rungs}")
    params = {"training.max_samples": samples, "evaluation.rungs": list(rungs)}
    resources = spec.resources
    if resources.slots_per_gpu == "auto":
        resources = resources.model_copy(update={"slots_per_gpu": prepared.slots})
    trial = spec.trial.with_params(params)
    return spec.model_copy(update={"trial": trial, "resources": resources})


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
