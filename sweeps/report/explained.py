"""Figure of what each parameter explains of how the trials did, with its interval."""

from sweeps.report.page import Figure, text
from sweeps.results.importances import Importances

_COLOURS = {"matters": "--best", "little": "--complete", None: "--pruned"}
_ROW_HEIGHT, _FRAME_HEIGHT = 34, 110
"""Pixels."""


def explained(found: Importances) -> Figure | None:
    """Bars of the shares, grey where nothing can be said; None where the trials are too few."""
    if not found.rows:
        return None
    names = [text(row.name) for row in found.rows]
    said = [
        f"{row.name}: {row.share:.0%} ({row.low:.0%} to {row.high:.0%}), {row.num_trials} trials"
        for row in found.rows
    ]
    bars = {
        "type": "bar",
        "orientation": "h",
        "x": [row.share for row in found.rows],
        "y": names,
        "text": [text(words) for words in said],
        "textposition": "none",
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {"color": [_COLOURS[row.says] for row in found.rows]},
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [row.high - row.share for row in found.rows],
            "arrayminus": [row.share - row.low for row in found.rows],
            "color": "--ink",
            "thickness": 1,
        },
    }
    nothing = "Grey: nothing can be said yet."
    if not found.says_something:
        nothing = "Nothing can be said yet: shuffled results give as much."
    caption = f"Of the order of {found.num_trials} trials, with 95 % intervals. {nothing}"
    layout = {
        "height": _FRAME_HEIGHT + _ROW_HEIGHT * len(names),
        "showlegend": False,
        "bargap": 0.45,
        "xaxis": {"title": {"text": "share explained"}, "tickformat": ".0%", "range": [0, 1]},
        "yaxis": {"type": "category", "categoryarray": names, "autorange": "reversed"},
    }
    return {"caption": caption, "data": [bars], "layout": layout}
