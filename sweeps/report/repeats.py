"""Figure of a confirmation: what each configuration came to under every fresh seed."""

from sweeps.confirmation.rounds import losses_of
from sweeps.report.page import Figure, text
from sweeps.results.leaderboard import Leaderboard
from sweeps.spec.metrics import as_loss
from sweeps.study.study import SweepStudy

_ROW_HEIGHT, _FRAME_HEIGHT = 34, 150
"""Pixels."""


def seeds(board: Leaderboard, study: SweepStudy) -> Figure | None:
    """Values by seed, the expected value with its interval, and the recorded one; None without
    repeats."""
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
    traces = [
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
            "error_x": {
                "type": "data",
                "symmetric": False,
                "array": [interval.high - interval.value for interval in expected],
                "arrayminus": [interval.value - interval.low for interval in expected],
                "color": "--best",
            },
        },
    ]
    layout = {
        "height": _FRAME_HEIGHT + _ROW_HEIGHT * len(found.rows),
        "xaxis": {"title": {"text": text(found.metric)}},
        "yaxis": {"type": "category", "categoryarray": of_rows, "autorange": "reversed"},
    }
    caption = "Recorded is what the trial was chosen by: the best of many is too good."
    return {"caption": caption, "data": traces, "layout": layout}
