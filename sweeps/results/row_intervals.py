"""How far two trials are apart on the rows that both were measured on: a paired bootstrap.

Rows are drawn anew, the same ones for both trials, and with a row all of its examples. The interval
is that of *these two adapters* on other rows of the same kind; what another seed would train is not
in it.
"""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from sweeps.results.row_metrics import Numbers, weighted

if TYPE_CHECKING:
    import pandas

RESAMPLES = 2000
LEVEL = 0.95
_SEED = 0
_CELLS = 4_000_000
"""Weights that are held at a time: 32 MB."""


def same_rows(one: "pandas.DataFrame", other: "pandas.DataFrame") -> bool:
    """Whether two frames of `rows.read_rows` have the same examples, in one order."""
    names = [name for name in ("row", "count", "num_bytes", "key") if name in one and name in other]
    return len(one) == len(other) and bool((one[names] == other[names]).all(axis=None))


def resampled(metric: str, frames: "list[pandas.DataFrame]") -> Numbers | None:
    """Values [frames, RESAMPLES] of a metric (without its split) on rows drawn with replacement,
    the same for all frames; None if the metric does not follow from rows.

    The frames have the same examples. Seeded: equal frames give equal values.
    """
    functions = [weighted(metric, frame) for frame in frames]
    drawn = [function for function in functions if function is not None]
    if len(drawn) < len(frames):
        return None
    _, places = np.unique(np.asarray(frames[0]["row"]), return_inverse=True)
    found = [
        np.stack([value(weights[:, places]) for value in drawn])
        for weights in _weights(int(places.max()) + 1, len(places))
    ]
    return np.concatenate(found, axis=1)


def interval(metric: str, frame: "pandas.DataFrame") -> tuple[float, float] | None:
    """Of a metric (without its split) on other rows: the percentile interval of LEVEL; None if it
    does not follow from rows."""
    values = resampled(metric, [frame])
    return None if values is None else _percentiles(values[0])


def intervals_of_metrics(
    names: Iterable[str], frame: "pandas.DataFrame"
) -> dict[str, tuple[float, float]]:
    """`interval` by the whole name of a metric (`validation/loss`); none of those that do not
    follow from rows."""
    found = {name: interval(name.partition("/")[2], frame) for name in names}
    return {name: known for name, known in found.items() if known is not None}


def difference_interval(
    first: Numbers, other: Numbers, comparisons: int = 1
) -> tuple[float, float]:
    """Of `other - first`, from two rows of `resampled`: the percentile interval of LEVEL, which
    holds of `comparisons` together (Bonferroni)."""
    return _percentiles(other - first, comparisons)


def _percentiles(values: Numbers, comparisons: int = 1) -> tuple[float, float]:
    tail = 50 * (1 - LEVEL) / comparisons
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)


def _weights(num_rows: int, num_examples: int) -> Iterator[Numbers]:
    """How often each row is drawn, in parts that together are RESAMPLES draws of as many rows."""
    source = np.random.default_rng(_SEED)
    part = max(1, min(RESAMPLES, _CELLS // max(num_rows, num_examples)))
    for start in range(0, RESAMPLES, part):
        size = min(part, RESAMPLES - start)
        shares = np.full(num_rows, 1 / num_rows)
        yield source.multinomial(num_rows, shares, size=size).astype(np.float64)
