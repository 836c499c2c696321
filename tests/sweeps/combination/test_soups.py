"""Soups: what is tried, kept and accepted, of adapters that are vectors, on rows that are known."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas
import pytest

from peft_jobs import SpecError
from peft_jobs.spec.combination import CombinationSpec
from sweeps.combination.contest_words import judgement, on_test_rows
from sweeps.combination.on_test_rows import measure_on_test_rows
from sweeps.combination.soups import Contest, hold_contest

CAT = CombinationSpec()
NUM_ROWS = 200


class Vectors:
    """A bench whose adapters are vectors: a row's loss is the square of how far they are off it."""

    def __init__(self, adapters: Mapping[str, float], noise: float = 1.0) -> None:
        self.adapters = {name: np.asarray(value) for name, value in adapters.items()}
        self.rows = np.random.default_rng(0).normal(0.0, noise, NUM_ROWS)
        self.combined: list[dict[str, float]] = []
        self.read: list[tuple[str, str]] = []

    def measure(
        self, name: str, split: str = "validation"
    ) -> tuple[dict[str, float], pandas.DataFrame]:
        self.read.append((name, split))
        rows = self.rows if split == "validation" else self.rows[::-1] + 0.1
        losses = (rows - self.adapters[name]) ** 2
        columns = {"row": np.arange(1, NUM_ROWS + 1), "loss_sum": losses, "count": 1}
        loss = float(losses.mean())
        metrics = {f"{split}/loss": loss, f"{split}/score": -loss, f"{split}/own": loss}
        return metrics, pandas.DataFrame(columns | {"score": -losses})

    def combine(self, name: str, weights: Mapping[str, float], how_json: str) -> None:
        self.combined.append(dict(weights))
        parts = (weight * self.adapters[part] for part, weight in weights.items())
        self.adapters[name] = np.sum([*parts], axis=0)

    def forget(self, name: str) -> None:
        del self.adapters[name]


@pytest.fixture
def hold() -> Callable[..., tuple[Vectors, Contest]]:
    """Adapters -> the bench and what came of it."""

    def run(
        adapters: Mapping[str, float],
        metric: str = "validation/loss",
        direction: str = "minimize",
        noise: float = 1.0,
        **options: Any,
    ) -> tuple[Vectors, Contest]:
        bench = Vectors(adapters, noise)
        given = {"hows": (CAT,), "weights": None, **options}
        contest = hold_contest(bench, [*adapters], metric=metric, direction=direction, **given)
        return bench, contest

    return run


def test_the_greedy_soup_takes_what_makes_it_no_worse(hold: Any) -> None:
    # Rows lie around 0, and losses grow with the distance from it. In the order of their values: a
    # begins with 1; d makes it 1.1, and is left out; c makes it -0.25, and stays; b 0.83, and not.
    bench, contest = hold({"a": 1.0, "b": 3.0, "c": -1.5, "d": 1.2})
    assert [[*one.weights] for one in contest.alone] == [["a"], ["d"], ["c"], ["b"]]
    tried = [set(weights) for weights in bench.combined]
    assert tried == [{"a", "b", "c", "d"}, {"a", "d"}, {"a", "c"}, {"a", "c", "b"}]
    assert {one.kind for one in contest.soups} == {"uniform", "greedy"}
    best = contest.best
    assert best.weights == {"a": 0.5, "c": 0.5}
    mean = float(((bench.rows + 0.25) ** 2).mean())
    assert best.value == pytest.approx(mean)
    low, high = contest.intervals["validation/loss"]
    assert low < mean < high
    assert "validation/own" not in contest.intervals


def test_a_combination_that_was_measured_is_not_measured_again(hold: Any) -> None:
    bench, contest = hold({"a": 1.0, "b": -1.5})
    assert bench.combined == [{"a": 0.5, "b": 0.5}]
    assert [one.kind for one in contest.soups] == ["uniform"]


def test_a_soup_is_accepted_only_beyond_its_rows(hold: Any) -> None:
    _, better = hold({"a": 1.0, "b": -1.0})
    assert better.accepted is not None
    assert better.accepted.difference[1] < 0
    assert "Accepted: it is better" in judgement(better)
    middle = float(Vectors({}, 3.0).rows.mean())
    _, tie = hold({"a": middle + 0.05, "b": middle - 0.05}, noise=3.0)
    assert tie.best.value < tie.alone[0].value
    assert tie.accepted is None
    assert tie.best.difference[0] < 0 < tie.best.difference[1]
    assert "Not accepted" in judgement(tie)
    _, worse = hold({"a": 0.0, "b": 3.0})
    assert worse.accepted is None


def test_where_more_is_better_signs_turn(hold: Any) -> None:
    _, contest = hold({"a": 1.0, "b": -1.0}, "validation/score", "maximize")
    assert contest.accepted is not None
    assert contest.accepted.difference[0] > 0
    assert contest.alone[0].value >= contest.alone[1].value


def test_intervals_hold_together(hold: Any) -> None:
    bench, one = hold({"a": 1.0, "b": -1.5})
    _, several = hold({"a": 1.0, "b": -1.5, "c": 4.0})
    same = next(soup for soup in several.soups if soup.weights == one.soups[0].weights)
    low, high = one.soups[0].difference
    assert same.difference[0] < low < high < same.difference[1]
    # By hand: percentiles of the paired differences of resampled rows, at 95 % for two together.
    gains = (bench.rows + 0.25) ** 2 - (bench.rows - 1.0) ** 2
    normal = gains.std() / NUM_ROWS**0.5
    assert low == pytest.approx(gains.mean() - 1.96 * normal, abs=0.2 * normal)
    assert same.difference[0] == pytest.approx(gains.mean() - 2.241 * normal, abs=0.35 * normal)


def test_given_weights_are_the_only_ones_tried(hold: Any) -> None:
    bench, contest = hold({"b": 3.0, "a": 1.0}, weights=(0.25, -0.5))
    assert bench.combined == [{"b": 0.25, "a": -0.5}]
    assert [one.title for one in contest.soups] == ["weighted, cat"]


def test_a_metric_that_follows_from_no_rows_accepts_nothing(hold: Any) -> None:
    _, contest = hold({"a": 1.0, "b": -1.0}, "validation/own")
    assert contest.best.difference is None
    assert contest.accepted is None
    assert "does not follow from rows" in judgement(contest)


def test_a_metric_that_is_not_measured_is_named(hold: Any) -> None:
    with pytest.raises(SpecError, match="validation/f1 is not measured; there are validation/loss"):
        hold({"a": 1.0, "b": -1.0}, "validation/f1")


def test_the_test_rows_are_read_once_and_decide_nothing(hold: Any) -> None:
    bench, contest = hold({"a": 1.0, "b": -1.5, "c": 4.0})
    assert {split for _, split in bench.read} == {"validation"}
    bench.combine("best", contest.best.weights, "")
    found = measure_on_test_rows(bench, "best", contest)
    assert bench.read[-2:] == [("a", "test"), ("best", "test")]
    combined, alone = found.objective(contest.metric)
    assert combined == pytest.approx(float(((bench.rows[::-1] + 0.1 + 0.25) ** 2).mean()))
    assert found.difference[0] < combined - alone < found.difference[1]
    assert f"{combined:.6g}, trial a alone {alone:.6g}" in on_test_rows(contest, found)


def test_a_contest_is_read_back_from_its_record(hold: Any) -> None:
    _, contest = hold({"a": 1.0, "b": -1.5, "c": 4.0})
    assert Contest.model_validate(contest.model_dump(mode="json")) == contest
