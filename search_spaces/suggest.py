"""Where values come from: Optuna's three methods as a Protocol, and a draw without Optuna."""

import math
import random
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Protocol, cast

from search_spaces.values import Scalar


class Suggest(Protocol):
    """The part of `optuna.Trial` that a space needs; a trial satisfies it as it is."""

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float: ...

    def suggest_int(
        self, name: str, low: int, high: int, *, step: int = 1, log: bool = False
    ) -> int: ...

    def suggest_categorical(self, name: str, choices: Sequence[Scalar]) -> Scalar: ...


class RandomSuggest:
    """Independent draws from Python's generator.

    Each name has its own stream, keyed by (seed, name): a parameter's draws do not change when
    another one is added, removed or moved.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._streams: dict[str, random.Random] = {}

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """Uniform (in the logarithm with `log`) in [low, high], or on the grid of `step`."""
        stream = self._stream(name)
        if step is not None:
            return on_grid(low, step, stream.randrange(num_on_grid(low, high, step)))
        if log:
            return min(max(math.exp(stream.uniform(math.log(low), math.log(high))), low), high)
        return stream.uniform(low, high)

    def suggest_int(
        self, name: str, low: int, high: int, *, step: int = 1, log: bool = False
    ) -> int:
        """Uniform in {low, low + step, ..., high}; with `log`, in the rounded logarithm."""
        stream = self._stream(name)
        if log:
            exact = math.exp(stream.uniform(math.log(low - 0.5), math.log(high + 0.5)))
            return min(max(round(exact), low), high)
        return stream.randrange(low, high + 1, step)

    def suggest_categorical(self, name: str, choices: Sequence[Scalar]) -> Scalar:
        """Any of `choices`, all equally likely."""
        return self._stream(name).choice(choices)

    def _stream(self, name: str) -> random.Random:
        return self._streams.setdefault(name, random.Random(f"{self._seed} {name}"))


class GivenSuggest:
    """Suggests the `given` values by name, and of other names what `rest` suggests."""

    def __init__(self, given: Mapping[str, Scalar], rest: Suggest) -> None:
        self._given, self._rest = given, rest

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        if name in self._given:
            return cast(float, self._given[name])
        return self._rest.suggest_float(name, low, high, step=step, log=log)

    def suggest_int(
        self, name: str, low: int, high: int, *, step: int = 1, log: bool = False
    ) -> int:
        if name in self._given:
            return cast(int, self._given[name])
        return self._rest.suggest_int(name, low, high, step=step, log=log)

    def suggest_categorical(self, name: str, choices: Sequence[Scalar]) -> Scalar:
        if name in self._given:
            return self._given[name]
        return self._rest.suggest_categorical(name, choices)


def num_on_grid(low: float, high: float, step: float) -> int:
    """How many of low, low + step, ... are <= high, counted in decimal as Optuna does."""
    return (Fraction(str(high)) - Fraction(str(low))) // Fraction(str(step)) + 1


def on_grid(low: float, step: float, index: int) -> float:
    """low + index * step, without binary rounding: 0.0, 0.05 and 2 give 0.1."""
    return float(Fraction(str(low)) + index * Fraction(str(step)))
