"""A metric as a function of how often each row counts, from the scores by row.

Resampling rows is counting some twice and others not at all. Every metric here is a function of
sums over examples, so many resamples are one product of matrices.

Dimensions: W weightings, E examples, K sums, C classes.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas

Numbers = NDArray[np.float64]
Weighted = Callable[[Numbers], Numbers]
"""From weights [W, E] to the metric's values [W]."""
_TOLERANCE = 1e-6
"""Of a recorded value that its rows must give again: else they are of another evaluation."""
_SUMS = {
    "perplexity": ("loss_sum", "count"),
    "bits_per_byte": ("loss_sum", "num_bytes"),
    "precision": ("correct_spans", "found_spans"),
    "recall": ("correct_spans", "true_spans"),
}
"""Metrics that follow from a ratio of sums."""


def weighted(metric: str, frame: "pandas.DataFrame") -> Weighted | None:
    """`metric` (without its split) of the rows of a frame of `rows.read_rows`; None for one that
    does not follow from rows: a person's own, and BLEU."""
    if metric in ("loss", "mse"):
        return _ratio(frame["loss_sum"], frame["count"])
    if metric in _SUMS and set(_SUMS[metric]) <= set(frame):
        top, bottom = _SUMS[metric]
        ratio = _ratio(frame[top], frame[bottom])
        if metric == "perplexity":
            return lambda weights: np.exp(np.minimum(ratio(weights), 700.0))
        return ratio if metric != "bits_per_byte" else lambda weights: ratio(weights) / np.log(2)
    if metric in ("pearson", "spearman") and "target" in frame:
        return _correlation(frame["output"], frame["target"], ranked=metric == "spearman")
    if metric == "f1" and "true_spans" in frame:
        found = np.asarray(frame["found_spans"]) + np.asarray(frame["true_spans"])
        return _ratio(2 * frame["correct_spans"], found)
    if metric in ("accuracy", "macro_f1", "micro_f1") and "actual" in frame:
        return _of_classes(metric, frame)
    if metric in frame:  # one of each row, or of those for which the model has written an answer
        return _mean_by_row(metric, frame)
    return None


def whole_rows(
    metric: str, recorded: float | None, frame: "pandas.DataFrame | None"
) -> "pandas.DataFrame | None":
    """The frame, if the value that was recorded of `metric` follows from it."""
    value = None if frame is None else weighted(metric, frame)
    if frame is None or value is None or recorded is None:
        return None
    again = float(value(np.ones((1, len(frame))))[0])
    return frame if np.isclose(again, recorded, rtol=_TOLERANCE, atol=_TOLERANCE) else None


def _ratio(top: Any, bottom: Any) -> Weighted:
    """Ratio of two weighted sums; 0 where there is nothing to divide by."""
    parts = np.stack([np.asarray(top, np.float64), np.asarray(bottom, np.float64)], axis=1)

    def value(weights_WE: Numbers) -> Numbers:
        sums_WK = weights_WE @ parts
        return _divided(sums_WK[:, 0], sums_WK[:, 1])

    return value


def _divided(top: Numbers, bottom: Numbers) -> Numbers:
    return np.divide(top, bottom, out=np.zeros_like(top, dtype=np.float64), where=bottom != 0)


def _mean_by_row(metric: str, frame: "pandas.DataFrame") -> Weighted:
    """The windows of a row, which have equal keys, count once."""
    counts = np.asarray(frame[metric].notna(), np.float64)
    if "key" in frame:
        counts /= frame.groupby("key")["key"].transform("size").to_numpy()
    return _ratio(np.nan_to_num(np.asarray(frame[metric], np.float64)) * counts, counts)


def _of_classes(metric: str, frame: "pandas.DataFrame") -> Weighted:
    """Of one class, of a set of classes, or of the tags of the words of each example."""
    hits, predicted, actual = _by_class(frame)
    if metric == "accuracy":
        if "count" in frame and "true_spans" in frame:
            return _ratio(hits.sum(axis=1), frame["count"])
        exact = (hits == predicted).all(axis=1) & (hits == actual).all(axis=1)
        return _ratio(exact, np.ones(len(frame)))
    if metric == "micro_f1":
        return _ratio(2 * hits.sum(axis=1), (predicted + actual).sum(axis=1))

    def value(weights_WE: Numbers) -> Numbers:
        both_WC = weights_WE @ (predicted + actual)
        f1_WC = _divided(2 * (weights_WE @ hits), both_WC)
        # Of a set every class counts; otherwise those that are there, or predicted.
        there_WC = both_WC > 0 if not _of_sets(frame) else np.ones_like(both_WC)
        return _divided((f1_WC * there_WC).sum(axis=1), there_WC.sum(axis=1).astype(np.float64))

    return value


def _of_sets(frame: "pandas.DataFrame") -> bool:
    return "true_spans" not in frame and np.ndim(frame["actual"].iloc[0]) == 1


def _by_class(frame: "pandas.DataFrame") -> tuple[Numbers, Numbers, Numbers]:
    """[E, C] each: right predictions, predictions, and what is true."""
    if _of_sets(frame):
        predicted, actual = (np.stack(frame[name]) for name in ("predicted", "actual"))
        return tuple(each.astype(np.float64) for each in (predicted * actual, predicted, actual))  # type: ignore[return-value]
    pairs = [np.concatenate([np.atleast_1d(cell) for cell in frame[n]]) for n in _SIDES]
    example = np.repeat(np.arange(len(frame)), [np.size(cell) for cell in frame["actual"]])
    num_classes = int(max(side.max() for side in pairs)) + 1
    found = [np.zeros((len(frame), num_classes)) for _ in range(3)]
    right = pairs[0] == pairs[1]
    np.add.at(found[0], (example[right], pairs[0][right]), 1)
    for place, side in enumerate(pairs, start=1):
        np.add.at(found[place], (example, side), 1)
    return found[0], found[1], found[2]


_SIDES = ("predicted", "actual")


def _correlation(outputs: Any, targets: Any, ranked: bool) -> Weighted:
    """Pearson's, or Spearman's; 0 where either side is constant."""

    def value(weights_WE: Numbers) -> Numbers:
        sides = []
        for side in (outputs, targets):
            values = np.broadcast_to(np.asarray(side, np.float64), weights_WE.shape)
            values = _ranks(values[0], weights_WE) if ranked else values
            total = weights_WE.sum(axis=1, keepdims=True)
            mean = (weights_WE * values).sum(axis=1, keepdims=True) / total
            sides.append(values - mean)
        top = (weights_WE * sides[0] * sides[1]).sum(axis=1)
        squares = [(weights_WE * each**2).sum(axis=1) for each in sides]
        return _divided(top, np.sqrt(squares[0] * squares[1]))

    return value


def _ranks(values_E: Numbers, weights_WE: Numbers) -> Numbers:
    """The mean rank [W, E] of each value, where each stands as often as its weight says."""
    order, places = np.unique(values_E, return_inverse=True)
    counts = np.zeros((len(weights_WE), len(order)))
    np.add.at(counts.T, places, weights_WE.T)
    ranks: Numbers = np.cumsum(counts, axis=1) - (counts - 1) / 2
    return ranks[:, places]
