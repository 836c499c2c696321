"""What a sweep's space holds: its points, and those that are turned away before launch."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from peft_jobs import TrialSpec
from peft_jobs.spec.dotted import flatten
from search_spaces import RandomSuggest
from sweeps.spec import SweepSpec
from sweeps.spec.sample_points import trial_of

POINTS_DRAWN = 512
"""Random points that a plan looks at."""
IMPOSSIBLE = "the method cannot do it"
"""Why points are turned away that no constraint of the space names."""


@dataclass(frozen=True)
class Points:
    """Of POINTS_DRAWN random points of a space."""

    trials: tuple[TrialSpec, ...]
    """Those that may be launched, each once."""
    turned_away: dict[str, float]
    """The share of all by the constraint that they break first, or IMPOSSIBLE."""
    repeated: float
    """Of those that may be launched, the share that had been drawn before."""
    size: int | None
    """Distinct points of the space, at most; None if there are infinitely many."""

    @property
    def accepted(self) -> float:
        """The share of points that may be launched."""
        return 1.0 - sum(self.turned_away.values())


def points_of(spec: SweepSpec, number: int = POINTS_DRAWN) -> Points:
    """Draws a space's points, seeded, as a random sampler would."""
    reasons: Counter[str] = Counter()
    trials: dict[str, TrialSpec] = {}
    for found in _drawn(spec, number):
        if isinstance(found, str):
            reasons[found] += 1
        else:
            trials.setdefault(found.fingerprint(), found)
    shares = {reason: count / number for reason, count in reasons.most_common()}
    accepted = number - reasons.total()
    repeated = 1 - len(trials) / accepted if accepted else 0.0
    return Points(tuple(trials.values()), shares, repeated, spec.space.size())


def _drawn(spec: SweepSpec, number: int) -> Iterator[TrialSpec | str]:
    """Trials, or why a point is none."""
    base = flatten(spec.trial)
    for seed in range(number):
        point = spec.space.draw(RandomSuggest(seed), base)
        if (reason := spec.space.violated(point, base)) is not None:
            yield reason
            continue
        yield trial_of(spec, point) or IMPOSSIBLE
