"""Metrics of reweighted rows, and intervals of differences: against libraries on repeated rows."""

import math
from typing import Any

import numpy as np
import pandas
import pytest
from scipy.stats import bootstrap, pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score

from sweeps.results import row_intervals
from sweeps.results.row_intervals import RESAMPLES, difference_interval, resampled, same_rows
from sweeps.results.row_metrics import weighted

SOURCE = np.random.default_rng(7)
NUM_ROWS = 40


def frame(**columns: Any) -> pandas.DataFrame:
    losses = SOURCE.gamma(2.0, 3.0, NUM_ROWS)
    rows = {"row": np.arange(NUM_ROWS) + 1, "loss_sum": losses}
    return pandas.DataFrame({**rows, "count": np.ones(NUM_ROWS, int), **columns})


def lists(high: int, sizes: Any) -> list[Any]:
    return [SOURCE.integers(0, high, size) for size in sizes]


TEXTS = frame(count=SOURCE.integers(1, 9, NUM_ROWS), num_bytes=SOURCE.integers(5, 30, NUM_ROWS))
CLASSES = frame(predicted=SOURCE.integers(0, 4, NUM_ROWS), actual=SOURCE.integers(0, 4, NUM_ROWS))
SETS = frame(predicted=lists(2, [3] * NUM_ROWS), actual=lists(2, [3] * NUM_ROWS))
NUMBERS = frame(
    output=SOURCE.normal(size=NUM_ROWS).round(1), target=SOURCE.normal(size=NUM_ROWS).round(1)
)
SIZES = SOURCE.integers(1, 6, NUM_ROWS)
TAGS = frame(
    count=SIZES,
    predicted=lists(3, SIZES),
    actual=lists(3, SIZES),
    correct_spans=np.zeros(NUM_ROWS, int) + (SIZES > 3),
    found_spans=SIZES,
    true_spans=SIZES[::-1].copy(),
)
SPANS = frame(key=np.arange(NUM_ROWS) // 2, f1=np.repeat(SOURCE.random(NUM_ROWS // 2), 2))
WRITTEN = frame(rougeL=[None if n % 4 else n / NUM_ROWS for n in range(NUM_ROWS)])


def loss(rows: pandas.DataFrame) -> float:
    return float(rows["loss_sum"].sum() / rows["count"].sum())


def flat(rows: pandas.DataFrame) -> tuple[Any, Any]:
    return np.concatenate([*rows["actual"]]), np.concatenate([*rows["predicted"]])


def stacked(rows: pandas.DataFrame) -> tuple[Any, Any]:
    return np.stack([*rows["actual"]]), np.stack([*rows["predicted"]])


def span_f1(rows: pandas.DataFrame) -> float:
    precision = rows["correct_spans"].sum() / rows["found_spans"].sum()
    recall = rows["correct_spans"].sum() / rows["true_spans"].sum()
    return float(2 * precision * recall / (precision + recall))


def macro(average: str = "macro") -> dict[str, Any]:
    return {"average": average, "zero_division": 0}


CASES: list[tuple[str, pandas.DataFrame, Any]] = [
    ("loss", TEXTS, loss),
    ("perplexity", TEXTS, lambda r: math.exp(loss(r))),
    ("bits_per_byte", TEXTS, lambda r: r["loss_sum"].sum() / math.log(2) / r["num_bytes"].sum()),
    ("mse", NUMBERS, loss),
    ("accuracy", CLASSES, lambda r: accuracy_score(r["actual"], r["predicted"])),
    ("macro_f1", CLASSES, lambda r: f1_score(r["actual"], r["predicted"], **macro())),
    ("accuracy", SETS, lambda r: accuracy_score(*stacked(r))),
    ("macro_f1", SETS, lambda r: f1_score(*stacked(r), **macro())),
    ("micro_f1", SETS, lambda r: f1_score(*stacked(r), **macro("micro"))),
    ("pearson", NUMBERS, lambda r: pearsonr(r["output"], r["target"]).statistic),
    ("spearman", NUMBERS, lambda r: spearmanr(r["output"], r["target"]).statistic),
    ("accuracy", TAGS, lambda r: accuracy_score(*flat(r))),
    ("macro_f1", TAGS, lambda r: f1_score(*flat(r), **macro())),
    ("f1", TAGS, span_f1),
    ("precision", TAGS, lambda r: r["correct_spans"].sum() / r["found_spans"].sum()),
    ("f1", SPANS, lambda r: r.groupby(["key", "copy"])["f1"].first().mean()),
    ("rougeL", WRITTEN, lambda r: r["rougeL"].mean()),
]


@pytest.mark.parametrize(
    ("metric", "rows", "plain"), CASES, ids=lambda c: c if isinstance(c, str) else ""
)
def test_a_weight_is_how_often_a_row_stands_there(
    metric: str, rows: pandas.DataFrame, plain: Any
) -> None:
    weights = SOURCE.integers(0, 4, (5, NUM_ROWS))
    if "key" in rows:  # the windows of a row are drawn together
        weights = np.repeat(weights[:, ::2], 2, axis=1)
    weights[0] = 1
    value = weighted(metric, rows)
    assert value is not None
    found = value(weights.astype(float))
    for times, number in zip(weights, found, strict=True):
        repeated = rows.loc[np.repeat(rows.index, times)].copy()
        repeated["copy"] = repeated.groupby(level=0).cumcount()
        assert number == pytest.approx(plain(repeated), rel=1e-9, abs=1e-9)


def test_what_does_not_follow_from_rows_has_no_function() -> None:
    for metric, rows in (("bleu", WRITTEN), ("own", TEXTS), ("f1", CLASSES), ("pearson", CLASSES)):
        assert weighted(metric, rows) is None
    assert resampled("bleu", [WRITTEN, WRITTEN]) is None


def test_the_interval_of_a_difference_is_scipys() -> None:
    other = TEXTS.assign(loss_sum=TEXTS["loss_sum"] + SOURCE.normal(0.3, 1.0, NUM_ROWS))
    found = resampled("loss", [TEXTS, other])
    assert found is not None
    assert found.shape == (2, RESAMPLES)
    low, high = difference_interval(*found)

    def difference(a: Any, b: Any, count: Any, axis: int = -1) -> Any:
        return (b.sum(axis) - a.sum(axis)) / count.sum(axis)

    data = (TEXTS["loss_sum"], other["loss_sum"], TEXTS["count"])
    again = bootstrap(
        data,
        difference,
        paired=True,
        vectorized=True,
        n_resamples=20_000,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    width = again.high - again.low
    assert low == pytest.approx(again.low, abs=0.06 * width)
    assert high == pytest.approx(again.high, abs=0.06 * width)
    assert width < 0.2 * np.ptp(found[0]), "paired: what rows have in common is not in it"


def test_the_interval_covers_the_true_difference_as_often_as_it_says() -> None:
    covered = 0
    for seed in range(200):
        source = np.random.default_rng(seed)
        row = source.normal(3.0, 1.0, 60)
        pair = [row + source.normal(mean, 0.5, 60) for mean in (0.0, 0.1)]
        columns = {"row": np.arange(60), "count": 1}
        found = resampled("loss", [pandas.DataFrame({**columns, "loss_sum": p}) for p in pair])
        assert found is not None
        low, high = difference_interval(*found)
        covered += low <= 0.1 <= high
    assert 180 <= covered <= 198  # 95 % of 200; the binomial's 99.9 % interval is 180 to 199


def test_examples_of_one_row_are_drawn_together(monkeypatch: pytest.MonkeyPatch) -> None:
    twice = pandas.DataFrame({"row": [1, 1, 2, 2], "loss_sum": [0.0, 2.0, 1.0, 5.0], "count": 1})
    found = resampled("loss", [twice])
    assert found is not None
    assert set(found[0]) == {1.0, 2.0, 3.0}
    monkeypatch.setattr(row_intervals, "_CELLS", 40)
    in_parts = resampled("loss", [twice])
    assert in_parts is not None
    assert (in_parts == found).all()


def test_rows_are_paired_only_where_they_are_the_same() -> None:
    assert same_rows(TEXTS, TEXTS.assign(loss_sum=0.0))
    assert not same_rows(TEXTS, TEXTS.assign(row=TEXTS["row"] + 1))
    assert not same_rows(TEXTS, TEXTS[1:])
