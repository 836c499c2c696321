"""SAMPLERS: Optuna's samplers by name, built with their own arguments and a seed per ask."""

import hashlib
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import optuna

from peft_jobs.mistakes import suggest
from search_spaces import SearchSpace, Space
from sweeps.arguments import fitting

if TYPE_CHECKING:
    from sweeps.spec import SamplerSpec


# Duplicate points are told with a constraint, which this sampler then says, at every ask.
warnings.filterwarnings("ignore", message="Constraints have been set, but CmaEsSampler")


class _Grid(optuna.samplers.GridSampler):
    def after_trial(self, *args: Any, **kwargs: Any) -> None:
        """Optuna's version calls Study.stop, which raises outside of Study.optimize."""


@dataclass(frozen=True)
class _Entry:
    sampler: type[optuna.samplers.BaseSampler]
    constant_seed: bool = False
    """True where the sampler derives each point from one sequence."""
    defaults: dict[str, Any] = field(default_factory=dict)
    slow: bool = False
    """True where a point takes seconds, so that it is drawn beside the event loop."""


SAMPLERS: dict[str, _Entry] = {
    "tpe": _Entry(optuna.samplers.TPESampler),
    "random": _Entry(optuna.samplers.RandomSampler),
    "grid": _Entry(_Grid, constant_seed=True),
    "gp": _Entry(
        optuna.samplers.GPSampler, defaults={"warn_independent_sampling": False}, slow=True
    ),
    "cmaes": _Entry(optuna.samplers.CmaEsSampler, defaults={"warn_independent_sampling": False}),
    "qmc": _Entry(
        optuna.samplers.QMCSampler,
        constant_seed=True,
        defaults={
            "scramble": True,
            "warn_independent_sampling": False,
            "warn_asynchronous_seeding": False,
        },
    ),
}
_LEAST = {"popsize": 2, "n_ei_candidates": 1}
_MOST = 10**6
"""Of the arguments that Optuna takes as they come, and fails or never ends with later."""
_OURS = ("seed", "search_space", "constraints_func", "independent_sampler", "source_trials")


def check_sampler(spec: "SamplerSpec") -> "SamplerSpec":
    """The spec with its arguments in their types; ValueError for an unknown or a wrong one."""
    if spec.type not in SAMPLERS:
        raise ValueError(f"unknown sampler {spec.type!r}{suggest(spec.type, SAMPLERS)}")
    sampler = SAMPLERS[spec.type].sampler
    arguments = fitting(spec.type, sampler, spec.arguments, _OURS)
    for name, value in arguments.items():
        if type(value) is int and not _LEAST.get(name, 0) <= value <= _MOST:
            least = _LEAST.get(name, 0)
            raise ValueError(f"{spec.type}.{name} must be from {least} to {_MOST:,}, got {value}")
        if type(value) is float and not 0 < value <= _MOST:
            raise ValueError(f"{spec.type}.{name} must be > 0 and at most {_MOST:,}, got {value}")
    if arguments:  # values that contradict each other are seen by the sampler alone
        _build(sampler, arguments)
    return spec.model_copy(update=arguments)


def _conditional(space: Space) -> bool:
    return isinstance(space, SearchSpace) and any(p.when for p in space.parameters.values())


def make_sampler(
    spec: "SamplerSpec", space: Space, seed: int, number: int
) -> optuna.samplers.BaseSampler:
    """The sampler for the ask of trial `number`.

    A new one per ask, seeded from (seed, number): what a sweep draws does not depend on how often
    its driver was restarted. Grid and quasi-Monte-Carlo keep the one seed of their sequence.
    """
    entry = SAMPLERS[spec.type]
    drawn = hashlib.sha256(f"{seed}/{number}".encode()).digest()
    ask_seed = seed if entry.constant_seed else int.from_bytes(drawn[:4], "big")
    arguments: dict[str, Any] = {"seed": ask_seed, **entry.defaults, **spec.arguments}
    if spec.type == "grid":
        arguments["search_space"] = space.grid()
    if spec.type in ("gp", "cmaes", "qmc"):
        arguments["independent_sampler"] = optuna.samplers.RandomSampler(seed=ask_seed)
    if spec.type == "tpe" and _conditional(space):
        arguments.setdefault("group", True)
    return _build(entry.sampler, arguments)


def _build(
    sampler: type[optuna.samplers.BaseSampler], arguments: dict[str, Any]
) -> optuna.samplers.BaseSampler:
    with warnings.catch_warnings():  # at every ask: that group=True is experimental
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return sampler(**arguments)
