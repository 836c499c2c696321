"""Which parameters decided how trials did: the share that each explains, with its interval.

Trials are put in one order. Those that ran to the end come first, by the objective; then those that
were stopped, the later ones first, by what they had reported last; then those that diverged. So
pruned trials count, and none is compared at another fidelity than its own. What a parameter
explains is the share of the variance of places in that order that follows from it alone: by group
where it is a choice among words, by a quadratic in its place on its scale where it is a number
(R squared, adjusted for the number of terms). It matters if shuffled places give as much in less
than one of twenty studies, over all parameters together.

Optuna's evaluators answer otherwise on few trials: PED-ANOVA compares the best tenth, of ten trials
one, and fANOVA gives parameters that decide nothing up to 0.4.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import log
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState

from peft_jobs import Kind
from sweeps.spec.metrics import as_loss

Numbers = NDArray[np.float64]
Says = Literal["matters", "little"]

LEAST = 8
"""Trials that have a parameter, below which nothing is said of it."""
LEVEL = 0.95
LITTLE = 0.25
"""What a parameter explains at most, if it is said to matter little."""
DRAWS = 1000
MOST_DRAWN = 2_500_000
"""Places that are drawn at most, in fewer draws if there are more trials than these make a thousand
of."""
FEWEST_FOR_A_TEST = 40
"""Draws for each parameter that is tested, so that one of them can be found to matter."""
_TERMS_EACH = 3
"""Trials that there must be for each term of a parameter."""


@dataclass(frozen=True)
class Importance:
    """What one parameter explains of the order of the trials that have it."""

    name: str
    share: float
    """Of the variance of places, 0 to 1."""
    low: float
    high: float
    """95 % of resampled sets of trials."""
    chance: float
    """How often shuffled places give as much."""
    num_trials: int
    says: Says | None
    """`little` only where another one matters; None where nothing can be said yet."""


@dataclass(frozen=True)
class Importances:
    """Of all parameters that were sampled, the most important one first."""

    rows: tuple[Importance, ...]
    num_trials: int
    """That are in the order, of which `num_complete` ran to the end."""
    num_complete: int

    @property
    def says_something(self) -> bool:
        """Whether any parameter explains more than shuffled results would let it."""
        return any(row.says == "matters" for row in self.rows)


def importances(trials: Sequence[FrozenTrial], direction: str) -> Importances:
    """What each sampled parameter explains, of trials that were launched. Seeded."""
    ordered = in_order(trials, direction)
    places = {trial.number: float(place) for place, trial in enumerate(ordered)}
    names = dict.fromkeys(name for trial in ordered for name in trial.distributions)
    tried = []
    for name in names:
        having = [trial for trial in ordered if name in trial.distributions]
        terms = _terms(name, having)
        num_terms = terms.shape[1]
        if num_terms and len(having) >= max(LEAST, _TERMS_EACH * num_terms):
            tried.append((name, terms, np.array([places[trial.number] for trial in having])))
    drawn: dict[tuple[float, ...], _Draws] = {}
    rows = []
    for name, terms, values in tried:
        draws = drawn.get(key := tuple(values)) or drawn.setdefault(key, _Draws(values, len(tried)))
        rows.append(_row(name, terms, values, draws, len(tried)))
    if not any(row.says == "matters" for row in rows):
        rows = [replace(row, says=None) for row in rows]
    complete = sum(trial.state == TrialState.COMPLETE for trial in ordered)
    return Importances(tuple(sorted(rows, key=lambda row: -row.share)), len(ordered), complete)


def in_order(trials: Sequence[FrozenTrial], direction: str) -> list[FrozenTrial]:
    """Trials that say something of their point, the best one first; see the module."""

    def key(trial: FrozenTrial) -> tuple[int, int, float, int]:
        if trial.state == TrialState.COMPLETE and trial.value is not None:
            return 0, 0, as_loss(trial.value, direction), trial.number
        if trial.intermediate_values:
            step = max(trial.intermediate_values)
            return 1, -step, as_loss(trial.intermediate_values[step], direction), trial.number
        return 2, 0, 0.0, trial.number

    kinds = {trial.number: trial.user_attrs.get("kind") for trial in trials}
    said = [
        trial
        for trial in trials
        if (trial.state == TrialState.COMPLETE and trial.value is not None)
        or kinds[trial.number] == Kind.DIVERGED
        or (kinds[trial.number] == Kind.WEAK and trial.intermediate_values)
    ]
    return sorted(said, key=key)


class _Draws:
    """What is drawn of one sequence of places: shuffled ones, and how often each trial counts."""

    def __init__(self, values: Numbers, num_tests: int) -> None:
        number = len(values)
        draws = max(MOST_DRAWN // number, FEWEST_FOR_A_TEST * num_tests)
        self.number = min(DRAWS, draws)
        rng = np.random.default_rng(0)
        self.shuffled_DT = rng.permuted(np.tile(values, (self.number, 1)), axis=1)
        even = np.full(number, 1 / number)
        self.weights_DT = rng.multinomial(number, even, size=self.number).astype(np.float64)


def _row(name: str, terms: Numbers, values: Numbers, draws: _Draws, num_tests: int) -> Importance:
    share = float(_shares(terms, values, np.ones((1, len(values))))[0])
    null = _plain(terms, draws.shuffled_DT)
    own = _plain(terms, values[None])[0]
    chance = float((1 + np.sum(null >= own - 1e-12)) / (1 + draws.number))
    drawn = _shares(terms, values, draws.weights_DT)
    ends = np.percentile(drawn, [50 * (1 - LEVEL), 50 * (1 + LEVEL)]) - (drawn.mean() - share)
    low, high = (float(end) for end in np.clip(ends, 0.0, 1.0))
    says: Says | None = None
    if chance < (1 - LEVEL) / num_tests:
        says = "matters"
    elif high <= LITTLE:
        says = "little"
    return Importance(name, max(0.0, share), low, high, chance, len(values), says)


def _plain(terms: Numbers, values_DT: Numbers) -> Numbers:
    """R squared of each row of values."""
    basis, _ = np.linalg.qr(terms - terms.mean(axis=0))
    centred = values_DT - values_DT.mean(axis=1, keepdims=True)
    found: Numbers = ((centred @ basis) ** 2).sum(axis=1) / (centred**2).sum(axis=1)
    return found


def _shares(terms: Numbers, values: Numbers, weights_DT: Numbers) -> Numbers:
    """Adjusted R squared where each trial counts as often as its weight says."""
    number, num_terms = terms.shape
    whole = np.column_stack([np.ones(number), terms])
    centred = values - values.mean()
    squares = (whole[:, :, None] * whole[:, None, :]).reshape(number, -1)
    gram = (weights_DT @ squares).reshape(-1, num_terms + 1, num_terms + 1)
    right = weights_DT @ (whole * centred[:, None])
    found = np.einsum("dij,dj->di", np.linalg.pinv(gram, hermitian=True), right)
    total = weights_DT @ centred**2 - (weights_DT @ centred) ** 2 / number
    left = weights_DT @ centred**2 - (found * right).sum(axis=1)
    plain = 1 - left / np.where(total > 0, total, 1.0)
    adjusted: Numbers = 1 - (1 - plain) * (number - 1) / (number - num_terms - 1)
    return adjusted


def _terms(name: str, trials: Sequence[FrozenTrial]) -> Numbers:
    """Columns [trials, terms] that a parameter is described by; none if it does not vary."""
    scaled = [_scaled(trial.distributions[name], trial.params[name]) for trial in trials]
    if None in scaled:
        words = list(dict.fromkeys(trial.params[name] for trial in trials))
        columns = [[float(t.params[name] == word) for t in trials] for word in words[1:]]
        return np.array(columns, dtype=np.float64).reshape(len(words) - 1, len(trials)).T
    place = np.array(scaled, dtype=np.float64)
    num_values = len(np.unique(place))
    place = (place - place.mean()) / (place.std() or 1.0)
    return (
        np.stack([place, place**2][: num_values - 1], axis=1)
        if num_values > 1
        else np.empty((len(place), 0))
    )


def _scaled(distribution: BaseDistribution, value: object) -> float | None:
    """Where a number lies on the scale that is sampled; None of a word."""
    if isinstance(distribution, CategoricalDistribution):
        choices = distribution.choices
        if not all(isinstance(c, int | float) and not isinstance(c, bool) for c in choices):
            return None
        return float(sorted(choices).index(value))  # type: ignore[type-var, arg-type]
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    assert isinstance(value, int | float)
    return log(value) if distribution.log else float(value)
