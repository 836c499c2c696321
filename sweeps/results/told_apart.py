"""Which rows of a board the validation rows tell from the first one, by a paired bootstrap.

It compares adapters, of one seed each: what it does not tell apart is a tie, and what it does may
be one for other seeds.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from sweeps.results.leaderboard import Leaderboard
from sweeps.results.row_intervals import difference_interval, resampled, same_rows
from sweeps.results.row_metrics import whole_rows

if TYPE_CHECKING:
    import pandas

MOST = 50
"""Ranked rows that are compared with the first; those behind have no interval."""
SPLIT = "validation/"


def told_apart(board: Leaderboard, read: "Callable[[int], pandas.DataFrame | None]") -> Leaderboard:
    """The board with the intervals of its ranked rows; `read` gives a trial's scores by row.

    Rows keep none where there are no scores, or where the objective does not follow from them.
    """
    ranked = [row for row in board.rows if row.rank is not None][: MOST + 1]
    if len(ranked) < 2 or not board.metric.startswith(SPLIT):
        return board
    metric = board.metric.removeprefix(SPLIT)
    frames = {row.number: read(row.number) for row in ranked}
    whole = ((row.number, whole_rows(metric, row.value, frames[row.number])) for row in ranked)
    kept = {number: frame for number, frame in whole if frame is not None}
    first = kept.get(ranked[0].number)
    if first is None:
        return board
    alike = {number: frame for number, frame in kept.items() if same_rows(first, frame)}
    values = resampled(metric, list(alike.values()))
    if values is None:
        return board
    found = {
        number: difference_interval(values[0], other)
        for number, other in zip(alike, values, strict=True)
        if number != ranked[0].number
    }
    rows = (replace(row, interval=found.get(row.number)) for row in board.rows)
    return replace(board, rows=tuple(rows))
