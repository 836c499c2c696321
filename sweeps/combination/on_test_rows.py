"""The test split, read once the validation rows have decided: nothing follows from its figures."""

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from sweeps.combination.soups import Bench, Contest
from sweeps.results.row_intervals import difference_interval, intervals_of_metrics, resampled
from sweeps.results.row_metrics import whole_rows

if TYPE_CHECKING:
    import pandas

SPLIT = "test/"


class OnTestRows(BaseModel):
    """A combination, and the best adapter alone."""

    model_config = ConfigDict(frozen=True)

    combined: dict[str, float]
    alone: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    """Of the combination's metrics on other rows; none of those that do not follow from rows."""
    difference: tuple[float, float] | None
    """Of the combination's objective to that of the best adapter alone, on other rows."""

    def objective(self, metric: str) -> tuple[float, float] | None:
        """(combined, alone) of the sweep's objective; None if the test rows do not give it."""
        name = SPLIT + metric.partition("/")[2]
        if name not in self.combined:
            return None
        return self.combined[name], self.alone[name]


def measure_on_test_rows(bench: Bench, name: str, contest: Contest) -> OnTestRows:
    """The combination `name` of a bench, and the contest's best adapter alone."""
    (best,) = contest.alone[0].weights
    alone, rows_alone = bench.measure(best, "test")
    combined, rows = bench.measure(name, "test")
    return OnTestRows(
        combined=combined,
        alone=alone,
        intervals=intervals_of_metrics(combined, rows),
        difference=_difference(contest, (alone, rows_alone), (combined, rows)),
    )


def _difference(
    contest: Contest,
    *measured: "tuple[dict[str, float], pandas.DataFrame]",
) -> tuple[float, float] | None:
    leaf = contest.metric.partition("/")[2]
    found = [whole_rows(leaf, metrics.get(SPLIT + leaf), rows) for metrics, rows in measured]
    whole = [rows for rows in found if rows is not None]
    values = resampled(leaf, whole) if len(whole) == len(found) else None
    return None if values is None else difference_interval(values[0], values[1])
