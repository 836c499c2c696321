"""Points that are not launched: why, how many, and which of a listed space may be."""

import logging
from collections import Counter
from collections.abc import Mapping

from optuna.trial import FrozenTrial
from pydantic import ValidationError

from peft_jobs import Kind, TrialSpec
from peft_jobs.spec.dotted import flatten
from peft_jobs.spec.mistakes import mistakes
from search_spaces import GivenSuggest, RandomSuggest, Scalar, SpaceError
from sweeps.spec import SweepSpec
from sweeps.study.draws import Drawn
from sweeps.study.reruns import is_repeat

log = logging.getLogger(__name__)

NOT_LAUNCHED = (Kind.REJECTED, Kind.DUPLICATE)


def is_launched(trial: FrozenTrial) -> bool:
    """Whether a trial is one of the sweep's own points: not turned away, no repeat of another."""
    return trial.user_attrs.get("kind") not in NOT_LAUNCHED and not is_repeat(trial)


_ADVICE = "loosen the constraints, or write a parameter as an expression of the others"
_TOLD = 3
"""Reasons that are named, the most frequent ones."""


class ListedPoints:
    """Tells which points of a space that is listed may be launched; counts those that may not.

    `seen` are the fingerprints of the trials that were launched, kept up to date by its owner.
    """

    def __init__(self, spec: SweepSpec, seen: Mapping[str, int]) -> None:
        self._spec, self._seen = spec, seen
        self._base = flatten(spec.trial)
        self.refused: Counter[str] = Counter()
        """By reason; a point that was launched before is not among them."""

    def accepts(self, given: Mapping[str, Scalar]) -> bool:
        """Whether the point, encoded for Optuna, is valid and new."""
        spec = self._spec
        try:
            params = spec.space.draw(GivenSuggest(given, RandomSuggest(spec.seed)), self._base)
            refused = spec.space.violated(params, self._base)
            if refused is None:
                return spec.trial.with_params(params).fingerprint() not in self._seen
        except (SpaceError, ValidationError) as error:
            refused = told_of(error)
        self.refused[f"by {refused}"] += 1
        return False

    @property
    def at_end(self) -> str:
        """That no point is left, and how many were none to launch."""
        told = "the space is exhausted"
        return f"{told}: {_words(self.refused)}" if self.refused else told


def check_queued(queued: Mapping[str, Scalar], drawn: Drawn) -> None:
    """SpaceError if what was queued for a trial is not what was drawn for it, or out of range.

    Optuna takes a value that is out of range, and passes over one that is not asked for.
    """
    for name, value in queued.items():
        if name not in drawn:
            raise SpaceError(f"{name} has no value here, got {value!r}")
        internal, distribution = drawn[name]
        if not distribution._contains(internal):
            raise SpaceError(f"{name} must be of {distribution}, got {value!r}")


def told_of(error: Exception) -> str:
    """Why a point cannot be drawn or is no trial, in one line; what nobody expects is logged."""
    if isinstance(error, ValidationError):
        return "; ".join(map(str, mistakes(error, TrialSpec)))
    if isinstance(error, SpaceError):
        return str(error)
    log.warning("a point cannot be drawn", exc_info=error)
    return f"{type(error).__name__}: {error}"


def reason(trial: FrozenTrial) -> str:
    """Why a trial was not launched: `by CONSTRAINT`, or `as duplicates`."""
    known = trial.user_attrs
    return "as duplicates" if known["kind"] == Kind.DUPLICATE else f"by {known['reason']}"


def given_up(reasons: Counter[str]) -> str:
    """That the search is given up after so many points in a row, by reason."""
    return f"{_words(reasons)} in a row: {_ADVICE}"


def _words(reasons: Counter[str]) -> str:
    most = "; ".join(f"{count:,} {text}" for text, count in reasons.most_common(_TOLD))
    return f"{reasons.total():,} points were turned away ({most})"
