"""Which bounds of the space the chosen configuration touches: what is better may lie beyond.

A bound beyond which no trial is valid (no dropout below 0, no rank below 1) is none of the space's.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import log
from typing import Any, Literal

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial

from peft_jobs import TrialSpec

NEAR = 0.05
"""Of a range, on the scale that is sampled: so near to its end a value touches it."""
_LEAST = 3
"""Values that a parameter has, below which each is at a bound."""


@dataclass(frozen=True)
class Bound:
    """A parameter whose chosen value is at, or near, an end of its range."""

    name: str
    side: Literal["lower", "upper"]
    value: Any
    bound: float
    """As it is declared; of a parameter with `times`, before that."""
    is_shared: bool
    """Whether all configurations that are not told apart from the chosen one touch it too."""

    @property
    def is_exact(self) -> bool:
        return bool(self.value == self.bound)


def touched(chosen: FrozenTrial, tied: Sequence[FrozenTrial], base: TrialSpec) -> list[Bound]:
    """The bounds that `chosen` touches; `tied` are the trials that are not told apart from it."""
    found = []
    for name, distribution in chosen.distributions.items():
        value, params = chosen.params[name], chosen.user_attrs["params"]
        for side, bound, beyond in _at(distribution, value):
            factor = params[name] / value if name in params and value else 1
            try:
                base.with_params({**params, name: beyond * factor})
            except ValueError:
                continue
            shared = all(_touches(trial, name, side) for trial in tied)
            found.append(Bound(name, side, params.get(name, value), bound, shared))
    return found


def _touches(trial: FrozenTrial, name: str, side: str) -> bool:
    if name not in trial.distributions:
        return False
    return any(at == side for at, _, _ in _at(trial.distributions[name], trial.params[name]))


def _at(
    distribution: BaseDistribution, value: Any
) -> Iterator[tuple[Literal["lower", "upper"], float, float]]:
    """Sides that a value is near, with the bound and a value beyond it."""
    if isinstance(distribution, CategoricalDistribution):
        choices = distribution.choices
        if len(choices) < _LEAST or not all(_is_number(choice) for choice in choices):
            return
        low, high = min(choices), max(choices)  # type: ignore[type-var]
        if value == high:
            yield "upper", high, _beyond(high, +1)  # type: ignore[misc, arg-type]
        if value == low:
            yield "lower", low, _beyond(low, -1)  # type: ignore[misc, arg-type]
        return
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high = distribution.low, distribution.high
    if high <= low or (distribution.step or 0) * (_LEAST - 1) > high - low:
        return
    place = (value - low) / (high - low)
    if distribution.log:
        place = log(value / low) / log(high / low)
    if place >= 1 - NEAR:
        yield "upper", high, _beyond(high, +1)
    if place <= NEAR:
        yield "lower", low, _beyond(low, -1)


def _beyond(bound: float, sign: int) -> float:
    """A value just outside: the next whole number, or a tenth more or less."""
    return bound + sign * (1 if isinstance(bound, int) else 0.1 * (abs(bound) or 1))


def _is_number(choice: object) -> bool:
    return isinstance(choice, int | float) and not isinstance(choice, bool)
