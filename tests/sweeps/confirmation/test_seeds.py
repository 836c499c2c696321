"""Intervals and ties of repeated configurations: by hand, and on studies whose truth is known."""

import math
import random
from statistics import mean, stdev

import pytest
from scipy import stats

from sweeps.confirmation.confirmed import near
from sweeps.confirmation.racing import Race
from sweeps.confirmation.seeds import Standing, chances, standings

STUDIES = 400
SEEDS = range(5)


def raced(rng: random.Random, means: list[float], max_repeats: int) -> list[Standing]:
    """A race of configurations whose losses scatter by 0.03 with the seed, and 0.02 to 0.06 more of
    their own."""
    of_seed = [rng.gauss(0, 0.03) for _ in SEEDS]
    own = [rng.uniform(0.02, 0.06) for _ in means]
    race, losses = Race(range(len(means)), SEEDS, max_repeats), dict[int, dict[int, float]]()
    while asked := race.next(losses):
        for number, seed in asked:
            loss = means[number] + of_seed[seed] + rng.gauss(0, own[number])
            losses.setdefault(number, {})[seed] = loss
    assert sum(map(len, losses.values())) <= max_repeats
    return standings(losses)


@pytest.mark.parametrize("gap", [0.0, 0.03], ids=["equal", "apart"])
@pytest.mark.parametrize("num", [4, 6])
def test_intervals_hold_what_they_promise(num: int, gap: float) -> None:
    """95 % each, and together at least; of equals, at most one race in twenty calls any worse."""
    rng = random.Random(num)
    alone, together, called_worse = [], [], []
    for _ in range(STUDIES):
        means = [1.0 + gap * place for place in range(num)]
        rng.shuffle(means)
        found = raced(rng, means, 5 * num)
        leader = means[found[0].number]
        alone += [one.expected.low <= means[one.number] <= one.expected.high for one in found]
        gaps = [(one.behind, means[one.number] - leader) for one in found[1:]]
        together.append(all(behind.low <= true <= behind.high for behind, true in gaps))
        called_worse.append(any(not one.is_tied for one in found))
    noise = 2.5 * math.sqrt(0.05 * 0.95 / STUDIES)
    assert 0.93 <= mean(alone) <= 0.985
    assert mean(together) >= 0.95 - noise
    if gap == 0:
        assert mean(called_worse) <= 0.05 + noise


def test_what_is_truly_worse_is_dropped_and_the_best_is_kept() -> None:
    rng = random.Random(0)
    kept, dropped = 0, 0
    for _ in range(100):
        found = raced(rng, [1.0, 1.01, 1.5], 15)
        tied = {one.number for one in found if one.is_tied}
        kept += 0 in tied
        dropped += 2 not in tied
    assert kept >= 95
    assert dropped == 100


def test_two_configurations_by_hand() -> None:
    """With one pair the pooled variance is its own, so this is the paired t test."""
    losses = {7: {1: 1.0, 2: 1.2, 3: 1.1}, 9: {1: 1.1, 2: 1.5, 3: 1.15}}
    leader, other = standings(losses)
    assert (leader.number, other.number, other.num_seeds) == (7, 9, 3)
    gaps = [0.1, 0.3, 0.05]
    assert other.behind.value == pytest.approx(mean(gaps))
    assert other.error == pytest.approx(stdev(gaps) / math.sqrt(3))
    assert other.df == 4, "two of its own, two of the pool, which is the same"
    half = stats.t.ppf(0.975, 4) * stdev(gaps) / math.sqrt(3)
    assert other.behind.high == pytest.approx(mean(gaps) + half)
    assert leader.behind.value == leader.error == 0.0


def test_near_is_who_is_at_most_a_standard_error_behind() -> None:
    """Gaps of 0.1, 0.3, 0.05 have a mean of 0.15 and a standard error of 0.076; with gaps about
    zero none is behind."""
    losses = {7: {1: 1.0, 2: 1.2, 3: 1.1}, 9: {1: 1.1, 2: 1.5, 3: 1.15}}
    ranked = standings(losses)
    assert ranked[1].error == pytest.approx(0.0763763)
    assert ranked[1].is_tied, "and yet it is far behind"
    assert [one.number for one in near(ranked)] == [7]
    assert [one.number for one in near(ranked, tolerance=0.15)] == [7, 9]
    assert [one.number for one in near(ranked, tolerance=0.14)] == [7]
    even = standings({7: {1: 1.0, 2: 1.2, 3: 1.1}, 9: {1: 1.1, 2: 1.11, 3: 1.1}})
    assert [one.number for one in near(even)] == [7, 9]


def test_a_single_seed_says_nothing() -> None:
    assert standings({1: {0: 1.0}, 2: {0: 2.0}}) == []
    (alone,) = standings({1: {0: 1.0, 1: 1.2}, 2: {0: 2.0}})
    assert (alone.number, alone.is_tied) == (1, True)


def test_common_seeds_tell_twins_apart_that_scatter_together() -> None:
    """The seed moves both by 0.5, the gap is 0.1: seed by seed that is plain."""
    of_seed = {0: 0.0, 1: 0.5, 2: -0.5, 3: 0.3}
    twins = {1: of_seed, 2: {seed: at + 0.1 + 0.001 * seed for seed, at in of_seed.items()}}
    leader, other = standings(twins)
    assert not other.is_tied
    assert leader.sd > 0.3
    assert chances([leader, other])[leader.number] > 0.99


def test_chances_of_equals_are_equal() -> None:
    even = standings({1: {0: 1.0, 1: 2.0}, 2: {0: 2.0, 1: 1.0}})
    found = chances(even)
    assert sum(found.values()) == pytest.approx(1.0)
    assert found[1] == pytest.approx(0.5, abs=0.03)
