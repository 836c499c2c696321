"""Figure of when trials ran, and where: a bar for each, on the lane of its machine and GPU."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from optuna.trial import FrozenTrial

from sweeps.report.page import Figure, text
from sweeps.results.states import word
from sweeps.study.reruns import is_repeat

_COLOURS = {
    "complete": "--complete",
    "pruned": "--pruned",
    "failed": "--failed",
    "repeat": "--second",
}
_LANE_HEIGHT, _FRAME_HEIGHT, _MAX_HEIGHT = 26, 130, 900
"""Pixels."""


def timeline(trials: Sequence[FrozenTrial]) -> Figure | None:
    """Bars of the trials that have ended, repeats too; None without any.

    The time is from when a
    trial was asked for to its end, also where it was interrupted in between.
    """
    bars = sorted(
        (
            (_place(trial), trial.datetime_start, trial.datetime_complete, trial)
            for trial in trials
            if trial.datetime_start and trial.datetime_complete and "result" in trial.user_attrs
        ),
        key=lambda bar: (bar[0], bar[1], bar[3].number),
    )
    if not bars:
        return None
    free: dict[str, list[datetime]] = {}
    by_kind: dict[str, dict[str, list[Any]]] = {}
    for place, start, end, trial in bars:
        lane = _lane(free.setdefault(place, []), start, end)
        kind = "repeat" if is_repeat(trial) else word(trial.state.name)
        columns = by_kind.setdefault(kind, {"x": [], "y": [], "base": [], "text": []})
        columns["x"].append((end - start).total_seconds() * 1000)
        columns["y"].append(text(place if lane == 0 else f"{place} ({lane + 1})"))
        columns["base"].append(start.isoformat())
        seconds = (end - start).total_seconds()
        columns["text"].append(text(f"trial {trial.number:04d}, {kind}, {seconds:.0f} s"))
    lanes = sorted({lane for columns in by_kind.values() for lane in columns["y"]}, key=_natural)
    traces = [
        {
            "type": "bar",
            "orientation": "h",
            "name": kind,
            **by_kind[kind],
            "textposition": "none",
            "hovertemplate": "%{text}<extra></extra>",
            "marker": {"color": colour, "line": {"color": "--card", "width": 1}},
        }
        for kind, colour in _COLOURS.items()
        if kind in by_kind
    ]
    layout = {
        "height": min(_MAX_HEIGHT, _FRAME_HEIGHT + _LANE_HEIGHT * len(lanes)),
        "barmode": "overlay",
        "xaxis": {"type": "date", "nticks": 4, "tickangle": 0},
        "yaxis": {"type": "category", "categoryarray": lanes, "autorange": "reversed"},
    }
    caption = "Trials that ran at the same time in one place have lanes of their own."
    return {"caption": caption, "data": traces, "layout": layout}


def _place(trial: FrozenTrial) -> str:
    """The machine and GPU of a trial's last attempt."""
    seen = trial.user_attrs["result"].get("provenance", {})
    node, gpus = seen.get("node"), seen.get("visible_devices")
    if seen.get("device", "cpu") == "cpu" or not gpus:
        return str(node or "machine")
    return f"{node or 'machine'}, GPU {gpus}"


def _lane(free: list[datetime], start: datetime, end: datetime) -> int:
    """The first lane that is free from `start` on; `free` then says until when it is taken."""
    lane = next((number for number, until in enumerate(free) if until <= start), len(free))
    free[lane:] = [end, *free[lane + 1 :]]
    return lane


def _natural(lane: str) -> tuple[str, int]:
    place, _, number = lane.partition(" (")
    return place, int(number.rstrip(")")) if number else 1
