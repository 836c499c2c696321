"""SAMPLERS: Optuna's samplers by name, built with their own arguments and a seed per ask."""

import hashlib
import inspect
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.trial import FrozenTrial
from pydantic import ConfigDict

from peft_jobs.spec.fields import Section
from peft_jobs.spec.mistakes import suggest
from search_spaces import SearchSpace, Space
from search_spaces.values import Scalar
from sweeps.search.arguments import fitting


class SamplerSpec(Section):
    """Optuna's sampler by `type`, with that sampler's own arguments beside it."""

    model_config = ConfigDict(extra="allow")
    type: str = "tpe"

    @property
    def arguments(self) -> dict[str, Any]:
        return dict(self.__pydantic_extra__ or {})


Accepts = Callable[[Mapping[str, Scalar]], bool]
"""Whether a point of a grid, encoded for Optuna, may be launched."""


# Duplicate points are told with a constraint, which this sampler then says, at every ask.
warnings.filterwarnings("ignore", message="Constraints have been set, but CmaEsSampler")


class _Tpe(optuna.samplers.TPESampler):
    """Optuna's, whose suggestions cost the same however many trials there are.

    It weighs the trials that `sweeps.study.history` chooses, and takes over from the sampler of the
    ask before it what that one has learnt of the space by looking at every trial.
    """

    _heir = False

    def succeed(self, last: "_Tpe") -> None:
        self._search_space = last._search_space
        self._group_decomposed_search_space = last._group_decomposed_search_space
        self._heir = True

    def infer_relative_search_space(self, study: Any, trial: FrozenTrial) -> Any:
        if self._heir:
            with _bounded(study):
                return super().infer_relative_search_space(study, trial)
        space = super().infer_relative_search_space(study, trial)
        study._thread_local.cached_all_trials = None  # these were all
        return space

    def sample_relative(self, study: Any, trial: FrozenTrial, *args: Any) -> Any:
        with _bounded(study):
            return super().sample_relative(study, trial, *args)

    def sample_independent(self, study: Any, trial: FrozenTrial, *args: Any) -> Any:
        with _bounded(study):
            return super().sample_independent(study, trial, *args)


def _bounded(study: Any) -> AbstractContextManager[None]:
    """A driver's study (`cached_storage`) shows what is to be weighed; another one shows all."""
    view: AbstractContextManager[None] = getattr(study._storage, "considering", nullcontext)()
    return view


class Grid(optuna.samplers.GridSampler):
    """Optuna's, which takes the points in turn that `accepts` takes, and knows when none is left.

    Optuna's order and numbers of the points stay, so a study goes on that began without `accepts`.
    """

    accepts: Accepts = staticmethod(lambda _: True)
    _next = 0

    def next_id(self, study: optuna.Study) -> int | None:
        """The number of the next point: no trial has had it, and it is accepted; None at the end.

        What was passed over once is not looked at again.
        """
        taken = {
            trial.system_attrs["grid_id"]
            for trial in study._storage.get_all_trials(study._study_id, deepcopy=False)
            if "grid_id" in trial.system_attrs
            and self._same_search_space(trial.system_attrs["search_space"])
        }
        while self._next < self._n_min_trials:
            point = dict(zip(self._param_names, self._all_grids[self._next], strict=True))
            if self._next not in taken and self.accepts(point):
                return self._next
            self._next += 1
        return None

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        if not {"grid_id", "fixed_params"} & trial.system_attrs.keys():
            number = self.next_id(study) or 0  # at the end one again, as a duplicate
            axes, write = self._search_space, study._storage.set_trial_system_attr
            write(trial._trial_id, "search_space", axes)
            write(trial._trial_id, "grid_id", number)

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
    learns: bool = True
    """False where a point does not depend on how other trials ended."""


SAMPLERS: dict[str, _Entry] = {
    "tpe": _Entry(_Tpe),
    "random": _Entry(optuna.samplers.RandomSampler, learns=False),
    "grid": _Entry(Grid, constant_seed=True, learns=False),
    "gp": _Entry(
        optuna.samplers.GPSampler, defaults={"warn_independent_sampling": False}, slow=True
    ),
    "cmaes": _Entry(optuna.samplers.CmaEsSampler, defaults={"warn_independent_sampling": False}),
    "qmc": _Entry(
        optuna.samplers.QMCSampler,
        constant_seed=True,
        learns=False,
        defaults={
            "scramble": True,
            "warn_independent_sampling": False,
            "warn_asynchronous_seeding": False,
        },
    ),
}
_MIN_ARGUMENT = {"popsize": 2, "n_ei_candidates": 1}
_MAX_ARGUMENT = 10**6
"""Of the arguments that Optuna takes as they come, and fails or never ends with later."""
_OURS = ("seed", "search_space", "constraints_func", "independent_sampler", "source_trials")


def check_sampler(spec: "SamplerSpec") -> "SamplerSpec":
    """The spec with its arguments in their types; ValueError for an unknown or a wrong one."""
    if spec.type not in SAMPLERS:
        raise ValueError(f"unknown sampler {spec.type!r}{suggest(spec.type, SAMPLERS)}")
    sampler = SAMPLERS[spec.type].sampler
    arguments = fitting(spec.type, sampler, spec.arguments, _OURS)
    for name, value in arguments.items():
        if type(value) is int and not _MIN_ARGUMENT.get(name, 0) <= value <= _MAX_ARGUMENT:
            least = _MIN_ARGUMENT.get(name, 0)
            raise ValueError(
                f"{spec.type}.{name} must be from {least} to {_MAX_ARGUMENT:,}, got {value}"
            )
        if type(value) is float and not 0 < value <= _MAX_ARGUMENT:
            raise ValueError(
                f"{spec.type}.{name} must be > 0 and at most {_MAX_ARGUMENT:,}, got {value}"
            )
    if arguments:  # values that contradict each other are seen by the sampler alone
        _build(sampler, arguments)
    return spec.model_copy(update=arguments)


def first_learnt(spec: SamplerSpec) -> int | None:
    """The number of the first trial that depends on how others ended; None if none ever does.

    What a sampler draws at random at first (`n_startup_trials`) does not.
    """
    entry = SAMPLERS[spec.type]
    if not entry.learns:
        return None
    default = inspect.signature(entry.sampler).parameters["n_startup_trials"].default
    return int(spec.arguments.get("n_startup_trials", default))


def _conditional(space: Space) -> bool:
    return isinstance(space, SearchSpace) and any(p.when for p in space.parameters.values())


def make_sampler(
    spec: "SamplerSpec",
    space: Space,
    seed: int,
    number: int,
    last: optuna.samplers.BaseSampler | None = None,
    accepts: Accepts = lambda _: True,
) -> optuna.samplers.BaseSampler:
    """The sampler for the ask of trial `number`; `last` is that of the ask before.

    A grid takes the points only that `accepts` takes, which must go on refusing what it refused.

    A new one per ask, seeded from (seed, number): what a sweep draws does not depend on how often
    its driver was restarted. Grid and quasi-Monte-Carlo keep the one seed of their sequence.
    """
    entry = SAMPLERS[spec.type]
    if spec.type == "grid" and isinstance(last, Grid):
        return last  # it draws nothing, and remembers where it is
    drawn = hashlib.sha256(f"{seed}/{number}".encode()).digest()
    ask_seed = seed if entry.constant_seed else int.from_bytes(drawn[:4], "big")
    arguments: dict[str, Any] = {"seed": ask_seed, **entry.defaults, **spec.arguments}
    if spec.type == "grid":
        arguments["search_space"] = space.grid()
    if spec.type in ("gp", "cmaes", "qmc"):
        arguments["independent_sampler"] = optuna.samplers.RandomSampler(seed=ask_seed)
    if spec.type == "tpe" and _conditional(space):
        arguments.setdefault("group", True)
    sampler = _build(entry.sampler, arguments)
    if isinstance(sampler, _Tpe) and isinstance(last, _Tpe):
        sampler.succeed(last)
    if isinstance(sampler, Grid):
        sampler.accepts = accepts
    return sampler


def _build(
    sampler: type[optuna.samplers.BaseSampler], arguments: dict[str, Any]
) -> optuna.samplers.BaseSampler:
    with warnings.catch_warnings():  # at every ask: that group=True is experimental
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return sampler(**arguments)
