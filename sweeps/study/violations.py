"""Constraint values of a trial, as it was measured or as it is predicted: positive where violated.

Optuna's samplers read them, and avoid the region of a point that has one.
"""

from collections.abc import Callable, Mapping

from peft_jobs import Kind, TrialResult, TrialSpec
from peft_jobs.host.prediction import PREDICTED, PredictedTrial
from sweeps.spec import SweepSpec
from sweeps.spec.metrics import numbers

Predict = Callable[[TrialSpec], PredictedTrial | None]
"""What a trial would take; None where that cannot be told."""
_OF_THE_POINT = (Kind.OUT_OF_MEMORY, Kind.DIVERGED, Kind.REFUSED, Kind.TIMEOUT)
"""Ends that are told as a violated constraint, for the sampler to learn from."""


def violations(spec: SweepSpec, result: TrialResult) -> dict[str, float]:
    """Of a trial that has ended, by name: of the sweep's constraints, and of its kind."""
    found = _values(spec, numbers(result))
    found |= {name: 1.0 for name in spec.constraints if name in result.not_finite}
    if result.kind in _OF_THE_POINT:
        found[str(result.kind)] = 1.0
    return found


def predicted_violations(spec: SweepSpec, predicted: PredictedTrial) -> dict[str, float]:
    """Of a point before its launch, by name: constraints that it would break by more than a
    prediction may be off, and `out_of_memory` where it fits its device with no memory settings.
    Empty where it may be launched."""
    values = _values(spec, predicted.numbers)
    found = {name: v for name, v in values.items() if v > PREDICTED.get(name, 0.0)}
    if not predicted.fits:
        peak, usable = predicted.prediction.peak_bytes, predicted.prediction.usable_bytes
        found[str(Kind.OUT_OF_MEMORY)] = (peak - usable) / usable
    return found


def told(spec: SweepSpec, violated: Mapping[str, float]) -> str:
    """Which predicted constraints are violated, in words that are the same for all points."""
    words = {str(Kind.OUT_OF_MEMORY): "predicted not to fit the device"}
    words |= {name: f"predicted {name} > {limit:,.0f}" for name, limit in spec.constraints.items()}
    return " and ".join(words[name] for name in violated)


def _values(spec: SweepSpec, known: Mapping[str, float]) -> dict[str, float]:
    return {
        name: (known[name] - limit) / (abs(limit) or 1.0)
        for name, limit in spec.constraints.items()
        if name in known
    }
