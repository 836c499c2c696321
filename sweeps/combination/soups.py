"""Soups of adapters (Wortsman et al. 2022, arXiv 2203.05482): tried on the validation rows, and
accepted only where the rows tell them from the best adapter alone.

The uniform soup is the mean of all. The greedy one begins with the best adapter and takes each
further one, in the order of their values, if the mean is no worse with it (Recipe 1 of the paper).
Weights of a person's own make one more.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import BaseModel, ConfigDict

from peft_jobs import SpecError
from peft_jobs.spec.combination import CombinationSpec
from sweeps.results.row_intervals import difference_interval, intervals_of_metrics, resampled
from sweeps.results.row_metrics import whole_rows
from sweeps.spec.metrics import as_loss

if TYPE_CHECKING:
    import pandas

_SPLIT = "validation/"
_SOUP = "soup"
"""On a bench, the combination that is being measured."""


class Bench(Protocol):
    """Where adapters are measured and combined (`peft_jobs.engines.solo.loaded_adapters`)."""

    def measure(
        self, name: str, split: str = "validation"
    ) -> "tuple[dict[str, float], pandas.DataFrame]": ...
    def combine(self, name: str, weights: Mapping[str, float], how_json: str) -> None: ...
    def forget(self, name: str) -> None: ...


class Measured(BaseModel):
    """An adapter, or a combination of several, on the validation rows."""

    model_config = ConfigDict(frozen=True)

    kind: str
    """`alone`, `uniform`, `greedy` or `weighted`."""
    weights: dict[str, float]
    """By the names of the adapters; of one alone, 1."""
    how: CombinationSpec | None = None
    """None of an adapter alone."""
    metrics: dict[str, float]
    value: float
    """The objective."""
    difference: tuple[float, float] | None = None
    """Of a combination: of its objective to that of the best adapter alone, on other validation
    rows; the intervals of all that were tried hold together in 95 %."""

    @property
    def title(self) -> str:
        return self.kind if self.how is None else f"{self.kind}, {self.how.type}"


_Pair = tuple[Measured, "pandas.DataFrame"]


class Contest(BaseModel):
    """What was tried, and what came of it."""

    model_config = ConfigDict(frozen=True)

    metric: str
    direction: str
    alone: tuple[Measured, ...]
    """The adapters by themselves, the best first."""
    soups: tuple[Measured, ...]
    """Every combination that was measured, the best first."""
    intervals: dict[str, tuple[float, float]] = {}
    """Of the metrics of `best` on other validation rows; none of those that do not follow from
    rows."""

    @property
    def best(self) -> Measured:
        """Of the combinations: an accepted one before the others."""
        return next((soup for soup in self.soups if self.accepts(soup)), self.soups[0])

    def accepts(self, soup: Measured) -> bool:
        """Whether a combination is better than the best adapter alone beyond its row interval."""
        if soup.difference is None:
            return False
        low, high = soup.difference
        return high < 0 if self.direction == "minimize" else low > 0

    @property
    def accepted(self) -> Measured | None:
        return self.best if self.accepts(self.best) else None


def hold_contest(
    bench: Bench,
    names: Sequence[str],
    hows: Sequence[CombinationSpec],
    weights: Sequence[float] | None,
    metric: str,
    direction: str,
) -> Contest:
    """Measure the adapters `names` of `bench`, and their soups in each of the ways `hows`.

    With `weights` that one combination is tried, and no soups. SpecError if a metric is not among
    those that are measured.
    """

    def measured(name: str, **known: Any) -> "_Pair":
        metrics, frame = bench.measure(name)
        if metric not in metrics:
            raise SpecError(f"{metric} is not measured; there are {', '.join(metrics)}")
        return Measured(metrics=metrics, value=metrics[metric], **known), frame

    def loss(pair: "_Pair") -> float:
        return as_loss(pair[0].value, direction)

    alone = [measured(name, kind="alone", weights={name: 1.0}) for name in names]
    alone.sort(key=loss)  # stable: the order of the board
    soups: list[_Pair] = []

    def tried(kind: str, shares: Mapping[str, float], how: CombinationSpec) -> "_Pair":
        same = (pair for pair in soups if (pair[0].how, pair[0].weights) == (how, shares))
        if (known := next(same, None)) is not None:
            return known
        bench.combine(_SOUP, shares, how.model_dump_json())
        soups.append(measured(_SOUP, kind=kind, weights=dict(shares), how=how))
        bench.forget(_SOUP)
        return soups[-1]

    order = [name for one, _ in alone for name in one.weights]
    for how in hows:
        if weights is not None:
            tried("weighted", dict(zip(names, weights, strict=True)), how)
            continue
        tried("uniform", _mean(order, how), how)
        kept, least = order[:1], loss(alone[0])
        for name in order[1:]:
            soup = tried("greedy", _mean([*kept, name], how), how)
            if loss(soup) <= least:
                kept, least = [*kept, name], loss(soup)
    intervals = _intervals(metric, alone[0], soups)
    told = [
        (soup.model_copy(update={"difference": difference}), frame)
        for (soup, frame), difference in zip(soups, intervals, strict=True)
    ]
    told.sort(key=loss)
    singles, combined = (tuple(one for one, _ in pairs) for pairs in (alone, told))
    contest = Contest(metric=metric, direction=direction, alone=singles, soups=combined)
    frame = told[combined.index(contest.best)][1]
    found = intervals_of_metrics(contest.best.metrics, frame)
    return contest.model_copy(update={"intervals": found})


def _mean(names: Sequence[str], how: CombinationSpec) -> dict[str, float]:
    return dict(zip(names, how.equal_weights(len(names)), strict=True))


def _intervals(
    metric: str, first: "_Pair", soups: "Sequence[_Pair]"
) -> list[tuple[float, float] | None]:
    """Of each soup's difference to `first`; None where the metric does not follow from rows."""
    nothing: list[tuple[float, float] | None] = [None] * len(soups)
    if not metric.startswith(_SPLIT):
        return nothing
    leaf = metric.removeprefix(_SPLIT)
    found = [whole_rows(leaf, one.value, frame) for one, frame in (first, *soups)]
    whole = [frame for frame in found if frame is not None]
    values = resampled(leaf, whole) if len(whole) == len(found) else None
    if values is None:
        return nothing
    return [difference_interval(values[0], other, len(soups)) for other in values[1:]]
