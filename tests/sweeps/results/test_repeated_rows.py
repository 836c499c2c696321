"""Seeds and rows together: intervals of a confirmation, on studies whose truth is known."""

import math
from collections.abc import Callable
from statistics import mean

import numpy as np
import pandas
import pytest
from scipy import stats

from sweeps import SweepSpec, open_sweep
from sweeps.confirmation.confirmed import confirmation_of
from sweeps.confirmation.seeds import Standing, standings
from sweeps.results.repeated_rows import noise_of, row_noise
from sweeps.run import launch
from sweeps.study.reruns import REPEAT_OF, repeats

ROWS, SEEDS = 60, 3
Frames = dict[tuple[int, int], pandas.DataFrame]


def confirmed(source: np.random.Generator, means: list[float]) -> Frames:
    """Scores by row: what a row adds is the same for all in part, and of each configuration and
    each adapter in part; as large as what seeds add, once it is averaged."""
    common, of_seed = source.normal(0, 0.4, ROWS), source.normal(0, 0.03, SEEDS)
    frames = {}
    for number, true in enumerate(means):
        own = source.normal(0, 0.2, ROWS)
        for seed in range(SEEDS):
            losses = true + of_seed[seed] + source.normal(0, 0.04) + common + own
            losses += source.normal(0, 0.1, ROWS)
            frames[number, seed] = pandas.DataFrame(
                {"row": range(ROWS), "loss_sum": losses, "count": 1}
            )
    return frames


def both(frames: Frames) -> tuple[list[Standing], list[Standing]]:
    """Standings with seeds and rows, and with seeds alone."""
    losses: dict[int, dict[int, float]] = {}
    for (number, seed), frame in frames.items():
        losses.setdefault(number, {})[seed] = float(frame["loss_sum"].mean())
    return standings(losses, rows=noise_of("loss", frames)), standings(losses)


def coverage(studies: int, means: list[float]) -> dict[str, float]:
    """Of `expected` and of each gap against the last one (two only), and of all gaps together."""
    source = np.random.default_rng(0)
    held: dict[str, list[bool]] = {"alone": [], "together": [], "worse": [], "seeds alone": []}
    for _ in range(studies):
        found, of_seeds = both(confirmed(source, means))
        leader = means[found[0].number]
        for name, standing in (("alone", found), ("seeds alone", of_seeds)):
            held[name] += [
                one.expected.low <= means[one.number] <= one.expected.high for one in standing
            ]
        gaps = [(one.behind, means[one.number] - leader) for one in found[1:]]
        held["together"].append(all(gap.low <= true <= gap.high for gap, true in gaps))
        held["worse"].append(any(not one.is_tied for one in found))
    return {name: mean(values) for name, values in held.items()}


def test_intervals_hold_for_other_seeds_and_other_rows() -> None:
    """Those of seeds alone do not: rows scatter as much."""
    studies = 150
    found = coverage(studies, [1.0] * 4)
    noise = 2.5 * math.sqrt(0.05 * 0.95 / studies)
    assert 0.93 - noise / 2 <= found["alone"] <= 0.985
    assert found["together"] >= 0.95 - noise
    assert found["worse"] <= 0.05 + noise
    assert found["seeds alone"] < 0.88


def test_what_rows_add_is_what_a_plain_bootstrap_finds() -> None:
    """scipy's, of the mean over seeds of one configuration, and of a difference."""
    frames = confirmed(np.random.default_rng(1), [1.0, 1.1])
    noise = noise_of("loss", frames)
    assert noise is not None
    assert noise.df == ROWS - 1
    of = {
        number: np.mean([frames[number, seed]["loss_sum"] for seed in range(SEEDS)], axis=0)
        for number in (0, 1)
    }
    for values, known in (
        (of[0], noise.alone[0]),
        (of[1] - of[0], noise.pairs[frozenset((0, 1))]),
    ):
        plain = stats.bootstrap((values,), np.mean, n_resamples=2000, rng=np.random.default_rng(2))
        assert known == pytest.approx(plain.standard_error, rel=0.1)


def test_by_hand_errors_add_in_squares_with_satterthwaites_degrees_of_freedom() -> None:
    frames = confirmed(np.random.default_rng(3), [1.0])
    noise = noise_of("loss", frames)
    assert noise is not None
    (found,), (of_seeds,) = both(frames)
    seeds = of_seeds.sd**2 / SEEDS
    rows = noise.alone[0] ** 2
    df = (seeds + rows) ** 2 / (seeds**2 / 4 + rows**2 / (ROWS - 1))  # two own, two of the pool
    half = stats.t.ppf(0.975, df) * math.sqrt(seeds + rows)
    assert found.expected.high - found.expected.value == pytest.approx(half)
    assert found.sd == of_seeds.sd, "of seeds, whatever the rows do"


def test_other_rows_tell_nothing() -> None:
    frames = confirmed(np.random.default_rng(4), [1.0, 1.1])
    frames[1, 0] = frames[1, 0].assign(row=range(1, ROWS + 1))
    assert noise_of("loss", frames) is None


def test_a_confirmation_that_is_read_holds_for_other_rows(
    sweep: Callable[..., SweepSpec],
) -> None:
    """Simulated trials leave no rows: they are made here."""
    spec = sweep(pruner="none", confirm={"seeds": 2, "candidates": 3})
    plain = launch(spec).leaderboard.confirmation
    assert plain is not None
    assert not plain.holds_for_rows
    study = open_sweep(spec.storage, spec.name).study
    source, frames = np.random.default_rng(5), {}
    for trial in repeats(study):
        scatter = source.normal(0, 0.5, 50)
        losses = trial.value + scatter - scatter.mean()  # type: ignore[operator]
        frames[trial.number] = pandas.DataFrame({"row": range(50), "loss_sum": losses, "count": 1})
    drawn = row_noise(study, frames.get)
    assert drawn is not None
    assert set(drawn.alone) == {t.user_attrs[REPEAT_OF] for t in repeats(study)}
    found = confirmation_of(study, drawn)
    assert found is not None
    assert found.holds_for_rows
    for row, before in zip(
        sorted(found.rows, key=lambda r: r.number),
        sorted(plain.rows, key=lambda r: r.number),
        strict=True,
    ):
        assert row.expected.value == before.expected.value
        assert row.expected.high > before.expected.high
    last = repeats(study)[-1].number
    assert row_noise(study, lambda number: None if number == last else frames[number]) is None
