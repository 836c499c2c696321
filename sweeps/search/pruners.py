"""PRUNERS: Optuna's pruners by name, with their own arguments; resources are counted in samples."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from pydantic import ConfigDict

from peft_jobs.spec.fields import MAX_NUMBER, Section
from peft_jobs.spec.mistakes import suggest
from sweeps.search.arguments import fitting
from sweeps.search.successive_halving import Halving


class PrunerSpec(Section):
    """Optuna's pruner by `type`, with that pruner's own arguments beside it.

    `successive_halving` compares a trial with those of its own adapter method, and stops none at a
    rung before `n_startup_trials` (5 by default) of them have passed it. Of those, one of
    `reduction_factor` goes on, rounded up.
    """

    model_config = ConfigDict(extra="allow")
    type: str = "successive_halving"

    @property
    def arguments(self) -> dict[str, Any]:
        return dict(self.__pydantic_extra__ or {})


PRUNERS: dict[str, type[optuna.pruners.BasePruner]] = {
    "none": optuna.pruners.NopPruner,
    "successive_halving": Halving,
    "hyperband": optuna.pruners.HyperbandPruner,
    "median": optuna.pruners.MedianPruner,
    "percentile": optuna.pruners.PercentilePruner,
    "threshold": optuna.pruners.ThresholdPruner,
    "patient": optuna.pruners.PatientPruner,
}
REDUCTION_FACTOR = 3
"""Of successive halving and Hyperband unless given (Li et al. 2018, arXiv 1810.05934: 3 or 4)."""


def check_pruner(spec: "PrunerSpec") -> "PrunerSpec":
    """The spec with its arguments in their types; ValueError for an unknown or a wrong one."""
    checked = spec.model_copy(update=_checked(spec.type, spec.arguments))
    try:
        build(checked, max_samples=1, rungs=(1,))
    except TypeError as error:  # threshold without a bound
        raise ValueError(f"{spec.type}: {error}") from None
    return checked


def _checked(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    if name == "wilcoxon":
        raise ValueError(
            "wilcoxon compares scores per example (step = example), which cannot share a study "
            "with rungs (step = samples); choose another pruner"
        )
    if name not in PRUNERS:
        raise ValueError(f"unknown pruner {name!r}{suggest(name, PRUNERS)}")
    if name != "patient":
        return _sensible(name, fitting(name, PRUNERS[name], arguments))
    wrapped = arguments.get("wrapped_pruner")
    if not isinstance(wrapped, Mapping | str):
        raise ValueError("patient needs `wrapped_pruner`: the pruner that it makes patient")
    inner, rest = _split(wrapped)
    if inner in ("patient", "hyperband"):
        raise ValueError(f"patient cannot wrap {inner}")
    own = {key: value for key, value in arguments.items() if key != "wrapped_pruner"}
    own = fitting(name, PRUNERS[name], own, ours=("wrapped_pruner",))
    return {**own, "wrapped_pruner": {"type": inner, **_checked(inner, rest)}}


def _sensible(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments, if they are what Optuna, which takes them as they come, can prune with."""
    for key, value in arguments.items():
        if isinstance(value, int | float) and not abs(value) <= MAX_NUMBER:
            raise ValueError(f"{name}.{key} must be at most {MAX_NUMBER:,}, got {value}")
    if name == "hyperband":
        least, most = arguments.get("min_resource", 1), arguments.get("max_resource", MAX_NUMBER)
        if arguments.get("reduction_factor", REDUCTION_FACTOR) < 2:
            raise ValueError(f"hyperband.reduction_factor must be >= 2, got {arguments}")
        if least < 1 or (most != "auto" and most < least):
            raise ValueError(f"hyperband needs 1 <= min_resource <= max_resource, got {arguments}")
    return arguments


def _split(wrapped: Mapping[str, Any] | str) -> tuple[str, dict[str, Any]]:
    if isinstance(wrapped, str):
        return wrapped, {}
    return str(wrapped.get("type")), {k: v for k, v in wrapped.items() if k != "type"}


def reduction_factor(spec: "PrunerSpec") -> int:
    """The factor between neighbouring rungs; that of the wrapped pruner if it is patient."""
    arguments = spec.arguments
    if spec.type == "patient":
        _, arguments = _split(arguments["wrapped_pruner"])
    return int(arguments.get("reduction_factor", REDUCTION_FACTOR))


def build(spec: "PrunerSpec", max_samples: int, rungs: Sequence[int]) -> optuna.pruners.BasePruner:
    """The pruner for trials of `max_samples` samples that are compared at `rungs`."""
    return _build(spec.type, spec.arguments, max_samples, rungs)


def _build(
    name: str, given: Mapping[str, Any], max_samples: int, rungs: Sequence[int]
) -> optuna.pruners.BasePruner:
    arguments = dict(given)
    if name in ("successive_halving", "hyperband"):
        arguments.setdefault("reduction_factor", REDUCTION_FACTOR)
        arguments.setdefault("min_resource", rungs[0] if rungs else max_samples)
    if name == "hyperband":
        arguments.setdefault("max_resource", max_samples)
    if name == "patient":
        inner, rest = _split(arguments["wrapped_pruner"])
        arguments["wrapped_pruner"] = _build(inner, rest, max_samples, rungs)
    with warnings.catch_warnings():  # that patience is experimental
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return PRUNERS[name](**arguments)
