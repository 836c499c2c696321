"""What a trial tells, before it is believed: without the objective it cannot be compared."""

from dataclasses import dataclass

from peft_jobs import Kind, Progress, State, TrialResult
from sweeps.spec.sweep import ObjectiveSpec


@dataclass(frozen=True)
class Fault:
    """Why a trial cannot be compared."""

    kind: Kind
    error: str

    def of(self, result: TrialResult) -> TrialResult:
        """The result of a trial that ends by this."""
        return result.model_copy(
            update={"state": self.kind.state, "kind": self.kind, "error": self.error}
        )


def fault_of(objective: ObjectiveSpec, told: Progress | TrialResult) -> Fault | None:
    """The fault of a report at a rung, or of an end; None if there is none.

    An objective that is NaN is the configuration's doing, as a loss would be; one that the
    evaluation did not give says nothing of it.
    """
    compared = told.rung is not None if isinstance(told, Progress) else _is_complete(told)
    metric = objective.metric
    if not compared or metric in told.metrics:
        return None
    at = f"after {told.samples:,} samples"
    if metric in told.not_finite:
        return Fault(Kind.DIVERGED, f"the objective {metric} is no finite number {at}")
    given = ", ".join(name for name in told.metrics if not name.startswith("train/")) or "nothing"
    return Fault(
        Kind.DATA, f"the evaluation {at} did not give the objective {metric}; it gave {given}"
    )


def _is_complete(result: TrialResult) -> bool:
    return result.state is State.COMPLETE
