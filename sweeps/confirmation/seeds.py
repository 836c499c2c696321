"""What repeats of a few configurations under the same seeds say of them.

Losses of a configuration differ between training seeds. Here each configuration has been trained
anew under seeds that all of them share, so differences are taken seed by seed.
"""

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from statistics import mean, variance

Losses = Mapping[int, Mapping[int, float]]
"""Losses (less is better) by configuration, then by seed."""

PRIOR_DF = 3.0
"""Degrees of freedom that the pooled variance has beside a configuration's own, at most: with two
to five seeds the own one alone says little, and configurations do not all scatter alike."""
LEVEL = 0.95
DRAWS = 4000


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class RowNoise:
    """How far means over seeds scatter when validation rows are drawn anew, the same for all."""

    alone: Mapping[int, float]
    """Standard deviation of a configuration's mean over its seeds."""
    pairs: Mapping[frozenset[int], float]
    """Of the difference of two, over the seeds that both have had."""
    df: float
    """Rows, less one."""


@dataclass(frozen=True)
class Standing:
    """Where a configuration stands among those that were repeated."""

    number: int
    expected: Interval
    """Its loss under a fresh seed, in the mean."""
    sd: float
    """Of its loss over seeds, shrunk towards what all have in common."""
    num_seeds: int
    behind: Interval
    """Its loss minus the leader's, over the seeds that both have had. The intervals of all hold
    together: of twenty confirmations of equals, one calls any of them worse."""
    error: float
    """Of that difference, with `df` degrees of freedom."""
    df: float

    @property
    def is_tied(self) -> bool:
        """Whether it is not told apart from the leader."""
        return self.behind.low <= 0


def standings(
    losses: Losses, looks: int = 0, against: int | None = None, rows: RowNoise | None = None
) -> list[Standing]:
    """The configurations with two seeds or more, the leader first, then by how far behind.

    Each might have been the leader, so intervals hold over all pairs; with `looks`, over as many
    looks at a race instead, in each of which all are compared with one. `against` takes the place
    of the leader. With `rows`, intervals hold for fresh seeds and other rows together, else for
    fresh seeds on these rows.
    """
    known = {number: of for number, of in losses.items() if len(of) >= 2}
    if not known:
        return []
    leader = leader_of(known) if against is None else against
    alone = _pooled([list(of.values()) for of in known.values()])
    paired = _pooled(_differences(a, b) for a, b in combinations(known.values(), 2))
    others = len(known) - 1
    comparisons = max(1, others * looks if looks else len(known) * others // 2)
    found = []
    for number, of in known.items():
        own, spread = list(of.values()), _differences(of, known[leader])
        drawn = (0.0, 1.0) if rows is None else (rows.pairs[frozenset((number, leader))], rows.df)
        behind, error, df = _interval(spread, paired, comparisons, drawn)
        if number == leader:
            behind, error = Interval(0.0, 0.0, 0.0), 0.0
        drawn = (0.0, 1.0) if rows is None else (rows.alone[number], rows.df)
        expected, _, _ = _interval(own, alone, 1, drawn)
        sd = math.sqrt(_shrunk(own, alone)[0])
        found.append(Standing(number, expected, sd, len(of), behind, error, df))
    return sorted(found, key=lambda one: (one.number != leader, one.behind.value, one.number))


def chances(ranked: Sequence[Standing]) -> dict[int, float]:
    """How often each is the first, under a fresh seed in the mean, if true gaps scatter so."""
    rng = random.Random(0)
    wins = dict.fromkeys((one.number for one in ranked), 0)
    for _ in range(DRAWS):
        gaps = {one.number: one.behind.value + one.error * _student(rng, one.df) for one in ranked}
        wins[min(gaps, key=lambda number: gaps[number])] += 1
    return {number: count / DRAWS for number, count in wins.items()}


def leader_of(losses: Losses) -> int:
    """The configuration with the lowest mean loss, of those with the most seeds."""
    most = max(len(of) for of in losses.values())
    means = {number: mean(of.values()) for number, of in losses.items() if len(of) == most}
    return min(means, key=lambda number: (means[number], number))


def _differences(of: Mapping[int, float], other: Mapping[int, float]) -> list[float]:
    """Seed by seed, over those that both have had."""
    return [of[seed] - other[seed] for seed in sorted(of.keys() & other.keys())]


def _pooled(samples: Iterable[Sequence[float]]) -> tuple[float, float]:
    """The mean variance of samples, and its degrees of freedom up to PRIOR_DF."""
    spread = [(variance(each), len(each) - 1) for each in samples if len(each) >= 2]
    df = sum(count for _, count in spread)
    if df == 0:
        return 0.0, 0.0
    return sum(value * count for value, count in spread) / df, min(PRIOR_DF, df)


def _shrunk(sample: Sequence[float], pooled: tuple[float, float]) -> tuple[float, float]:
    """A sample's variance with the pooled one mixed in, and its degrees of freedom."""
    own, prior = len(sample) - 1, pooled[1]
    spread = variance(sample) if own else 0.0
    return (prior * pooled[0] + own * spread) / max(1.0, prior + own), max(1.0, prior + own)


def _interval(
    sample: Sequence[float],
    pooled: tuple[float, float],
    comparisons: int,
    of_rows: tuple[float, float],
) -> tuple[Interval, float, float]:
    """A sample's mean with its interval, the mean's standard error, and degrees of freedom.

    `of_rows` are the standard error that rows add, and its degrees of freedom; both kinds together
    have those of Satterthwaite (1946).
    """
    (spread, df), (row_error, row_df) = _shrunk(sample, pooled), of_rows
    seeds, rows = spread / len(sample), row_error**2
    if rows > 0:
        df = (seeds + rows) ** 2 / (seeds**2 / df + rows**2 / row_df)
    error = math.sqrt(seeds + rows)
    return student_interval(mean(sample), error, df, comparisons), error, df


def student_interval(value: float, error: float, df: float, comparisons: int = 1) -> Interval:
    """Around an estimate with that standard error; so many of them hold together."""
    half = _quantile(1 - (1 - LEVEL) / (2 * comparisons), df) * error
    return Interval(value, value - half, value + half)


@cache
def _quantile(probability: float, df: float) -> float:
    """Of Student's t."""
    from scipy.stats import t as student  # takes a second, and only a confirmation needs it

    return float(student.ppf(probability, df))


def _student(rng: random.Random, df: float) -> float:
    """A draw of Student's t."""
    return rng.gauss(0, 1) / math.sqrt(rng.gammavariate(df / 2, 2 / df))
