"""Optuna's parallel coordinates of the ranked trials, over the parameters that varied."""

import logging
import warnings
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from sweeps.report.page import Figure, text
from sweeps.results.leaderboard import Leaderboard
from sweeps.study.study import SweepStudy

log = logging.getLogger(__name__)

_MOST = 300
"""Of the ranked trials, the first: more lines are a carpet."""
_AXIS_WIDTH = 120
"""Pixels that an axis with its ticks takes."""
_FAINTEST = 0.15
"""Opacity of the worst line."""
_NOTE = {"font": {"size": 11}, "bgcolor": "--card", "borderpad": 1}
"""Of the ticks' texts, which stand on the lines."""


def parallel_coordinates(board: Leaderboard, study: SweepStudy) -> Figure | None:
    """The figure; None below two ranked trials, or where nothing that was drawn varied."""
    ranked = [row.number for row in board.rows if row.rank is not None][:_MOST]
    trials = study.trials()
    chosen = [trials[number] for number in ranked]
    names = [name for name in board.varying if any(name in trial.params for trial in chosen)]
    if len(chosen) < 2 or not names:
        return None
    from optuna.visualization import plot_parallel_coordinate

    shown = _short(names)
    copy = optuna.create_study(direction=study.spec.objective.direction)
    copy.add_trials([_renamed(trial, shown) for trial in chosen])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        drawn = plot_parallel_coordinate(copy, target_name=text(board.metric.rpartition("/")[2]))
    return _of_the_page(drawn.to_plotly_json(), len(names) + 1, board.direction)


def _of_the_page(figure: dict[str, Any], num_axes: int, direction: str) -> Figure:
    """Optuna's figure in the page's colours, without its title, and wide enough for its axes.

    The better its place, the stronger a trial's line: Optuna's own scale goes from white to dark
    blue, which a dark page turns round. Its first axis, from 0 to 1, is the objective.
    """
    lines = [trace for trace in figure["data"] if trace["mode"] == "lines"]
    lines.sort(key=lambda trace: trace["y"][0], reverse=direction == "minimize")
    traces = []
    for place, trace in enumerate(lines, start=1):  # the best one last, on top of the others
        colour, width = ("--best", 3.0) if place == len(lines) else ("--complete", 1.5)
        line = {**trace["line"], "color": colour, "width": width}
        opacity = _FAINTEST + (1 - _FAINTEST) * place / len(lines)
        traces.append({**trace, "line": line, "opacity": opacity})
    layout = figure["layout"]
    notes = [{**note, **_NOTE} for note in layout["annotations"]]
    return {
        "caption": f"A line for each of {len(lines)} ranked trials: the better, the stronger.",
        "data": traces,
        "layout": {
            "xaxis": {**layout["xaxis"], "tickangle": 0, "fixedrange": True},
            "yaxis": layout["yaxis"],
            "annotations": notes,
            "shapes": layout["shapes"],
            "margin": {"r": _AXIS_WIDTH // 2},  # for the last axis' name
            "minwidth": _AXIS_WIDTH * num_axes,
        },
    }


def _renamed(trial: FrozenTrial, names: dict[str, str]) -> FrozenTrial:
    """A complete trial with other names of its parameters, and without those that have none."""
    kept = [name for name in names if name in trial.params]
    return optuna.trial.create_trial(
        value=trial.value,
        params={names[name]: trial.params[name] for name in kept},
        distributions={names[name]: trial.distributions[name] for name in kept},
    )


def _short(names: list[str]) -> dict[str, str]:
    """Names without their sections, where that leaves them distinct; escaped."""
    leaves = [name.rpartition(".")[2] for name in names]
    return {
        name: text(leaf if leaves.count(leaf) == 1 else name)
        for name, leaf in zip(names, leaves, strict=True)
    }
