"""The parameters that a sampler does not model, and so draws at random.

CMA-ES moves in numbers alone, GP and CMA-ES model what all trials have in common, and a
quasi-Monte-Carlo sequence spans the parameters of the first trial (Optuna 5:
`infer_relative_search_space` of each). Optuna draws the rest independently.
"""

from collections.abc import Mapping, Sequence

from search_spaces import RandomSuggest, Scalar, Space

_POINTS = 128
_WHY = {
    "cmaes": "it models numbers that all trials have",
    "gp": "it models what all trials have",
    "qmc": "its sequence spans what the first trial has",
}


def drawn_at_random(sampler: str, space: Space, base: Mapping[str, object]) -> list[str]:
    """The names in question, in the order in which they are drawn; seen from seeded points."""
    if sampler not in _WHY:
        return []
    seen = [_Recorder(seed) for seed in range(_POINTS)]
    for recorder in seen:
        space.draw(recorder, base)
    names = {name: None for recorder in seen for name in recorder.is_number}
    modelled = [
        name
        for name in names
        if all(name in recorder.is_number for recorder in seen)
        and (sampler != "cmaes" or seen[0].is_number[name])
    ]
    return [name for name in names if name not in modelled]


def why_at_random(sampler: str, names: Sequence[str]) -> str:
    """A sentence about `drawn_at_random`; empty if there is nothing to say."""
    return f"{sampler} draws {', '.join(names)} at random: {_WHY[sampler]}" if names else ""


class _Recorder:
    """Draws at random, and notes which names may take several values."""

    def __init__(self, seed: int) -> None:
        self._random = RandomSuggest(seed)
        self.is_number: dict[str, bool] = {}

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        self._note(name, low != high, True)
        return self._random.suggest_float(name, low, high, step=step, log=log)

    def suggest_int(
        self, name: str, low: int, high: int, *, step: int = 1, log: bool = False
    ) -> int:
        self._note(name, low != high, True)
        return self._random.suggest_int(name, low, high, step=step, log=log)

    def suggest_categorical(self, name: str, choices: Sequence[Scalar]) -> Scalar:
        self._note(name, len(choices) > 1, False)
        return self._random.suggest_categorical(name, choices)

    def _note(self, name: str, varies: bool, is_number: bool) -> None:
        if varies:
            self.is_number[name] = is_number
