"""Figure of a confirmation: what each configuration came to under every fresh seed."""

from collections.abc import Sequence
from typing import Any

from sweeps.confirmation.rounds import losses_of
from sweeps.confirmation.seeds import Interval
from sweeps.report.page import Figure, text
from sweeps.results.leaderboard import Leaderboard
from sweeps.spec.metrics import as_loss
from sweeps.study.study import SweepStudy

_ROW_HEIGHT, _FRAME_HEIGHT = 34, 150
"""Pixels."""
_FAR = 8.0
"""Widths of the first one's interval: rows that are so far from it would squeeze all others."""


def seeds(board: Leaderboard, study: SweepStudy, test: Interval | None = None) -> Figure | None:
    """Values by seed, the expected value with its interval, and the recorded one; of the one that
    is recommended that on the test rows too, if it is known. None without repeats."""
    if (found := board.confirmation) is None:
        return None
    losses, _ = losses_of(study)
    names = {row.number: f"trial {row.number:04d}" for row in found.rows}
    runs = [
        (names[row.number], seed, as_loss(loss, found.direction))
        for row in found.rows
        for seed, loss in losses[row.number].items()
    ]
    of_rows = list(names.values())
    expected = [row.expected for row in found.rows]
    traces: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": "one seed each",
            "x": [value for *_, value in runs],
            "y": [name for name, *_ in runs],
            "text": [f"{name}, seed {seed}: {value:.4f}" for name, seed, value in runs],
            "hovertemplate": "%{text}<extra></extra>",
            "marker": {"color": "--complete", "size": 7, "symbol": "circle-open"},
        },
        {
            "type": "scatter",
            "mode": "markers",
            "name": "recorded",
            "x": [row.recorded for row in found.rows],
            "y": of_rows,
            "hovertemplate": "%{y}, recorded: %{x:.4f}<extra></extra>",
            "marker": {"color": "--second", "size": 8, "symbol": "diamond"},
        },
        {
            "type": "scatter",
            "mode": "markers",
            "name": "expected, 95 %",
            "x": [interval.value for interval in expected],
            "y": of_rows,
            "hovertemplate": "%{y}, expected: %{x:.4f}<extra></extra>",
            "marker": {"color": "--best", "size": 10},
            "error_x": _bars(expected, "--best"),
        },
    ]
    lanes, known = [*of_rows], [*expected]
    if test is not None:
        recommended = names[found.recommended]
        lane = f"{recommended}, test"
        lanes.insert(lanes.index(recommended) + 1, lane)
        known.append(test)
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": "test rows, 95 %" if test.low < test.high else "test rows",
                "x": [test.value],
                "y": [lane],
                "text": [f"{recommended}, its adapter on the test rows: {test.value:.4f}"],
                "hovertemplate": "%{text}<extra></extra>",
                "marker": {"color": "--ink", "size": 8, "symbol": "square"},
                "error_x": _bars([test], "--ink"),
            }
        )
    layout: dict[str, Any] = {
        "height": _FRAME_HEIGHT + _ROW_HEIGHT * len(lanes),
        "xaxis": {"title": {"text": text(found.metric)}},
        "yaxis": {"type": "category", "categoryarray": lanes, "autorange": "reversed"},
    }
    caption = "Recorded is what the trial was chosen by: the best of many is too good."
    first, *_ = expected
    width = first.high - first.low
    near = [one for one in known if abs(one.value - first.value) <= _FAR * width]
    if len(near) < len(known) and width > 0:
        ends = [end for one in near for end in (one.low, one.high)]
        layout["xaxis"]["range"] = [min(ends) - width, max(ends) + width]
        caption += (
            " Rows without a mark lie far to the side (on the page, a double click shows them)."
        )
    return {"caption": caption, "data": traces, "layout": layout}


def _bars(of: Sequence[Interval], colour: str) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "array": [one.high - one.value for one in of],
        "arrayminus": [one.value - one.low for one in of],
        "color": colour,
    }
