"""Draws all parameters of a point before any is written, so that a retry draws the same point.

Optuna writes each parameter as it is drawn. Were that cut off, the next try would find some of them
and draw the others with a generator that is in another state. Here all are drawn before any is
written, and written together.
"""

from collections.abc import Callable
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import Trial

from search_spaces import Params

Drawn = dict[str, tuple[float, BaseDistribution]]
"""Parameters in Optuna's internal representation."""


def draw(trial: Trial, point: Callable[[Trial], Params]) -> tuple[Params, Drawn]:
    """What `point` draws from `trial`, and what has to be written of it. Writes no parameter.

    What a cut-off try has written is drawn again; only where it then comes out differently, because
    other trials have ended meanwhile, the written values stay.
    """
    written = trial.storage.get_trial(trial._trial_id).params
    params, drawn = _draw(trial, point, {})
    again = {name: d.to_external_repr(value) for name, (value, d) in drawn.items()}
    if not written.items() <= again.items():
        params, drawn = _draw(trial, point, written)
    return params, drawn


def _draw(
    trial: Trial, point: Callable[[Trial], Params], known: dict[str, Any]
) -> tuple[Params, Drawn]:
    storage, frozen = trial.storage, trial._cached_frozen_trial
    before = frozen.params, frozen.distributions
    kept = {name: frozen.distributions[name] for name in known}
    frozen.params, frozen.distributions = dict(known), kept
    unwritten = _Unwritten(storage)
    trial.storage = unwritten  # type: ignore[assignment]
    try:
        return point(trial), unwritten.drawn
    finally:
        trial.storage = storage
        frozen.params, frozen.distributions = before


class _Unwritten:
    """A storage that keeps a trial's parameters to itself."""

    def __init__(self, storage: optuna.storages.BaseStorage) -> None:
        self._storage = storage
        self.drawn: Drawn = {}

    def set_trial_param(
        self, trial_id: int, name: str, value: float, distribution: BaseDistribution
    ) -> None:
        self.drawn[name] = (value, distribution)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)
