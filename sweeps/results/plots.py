"""Pictures of a sweep as PNG files: history and rungs are Optuna's, and importances."""

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from sweeps.results.importances import Importances, importances
from sweeps.study.database import name_metric
from sweeps.study.reruns import is_repeat

log = logging.getLogger(__name__)

_MAX_CURVES = 200
"""Of the picture of rungs, the newest; beyond a few a legend with a line for each helps nobody."""
_MAX_LEGEND = 20


def write_plots(study: optuna.Study, folder: Path) -> list[Path]:
    """Draw what the study has enough trials for into `folder`; returns the files."""
    every = study.get_trials(deepcopy=False)
    trials = [trial for trial in every if not is_repeat(trial)]
    if len(trials) < len(every):
        study = _study_of(trials, study)
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    if not complete:
        return []
    import matplotlib

    matplotlib.use("Agg")
    from optuna.visualization import matplotlib as draw

    plots: dict[str, Callable[[optuna.Study], Any]] = {
        "history": draw.plot_optimization_history,
    }
    if any(trial.intermediate_values for trial in trials):  # else Optuna warns of an empty picture
        plots["rungs"] = _rungs
    found = importances(trials, study.direction.name.lower())
    if len(found.rows) > 1:
        plots["importances"] = lambda _: _importances(found)
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, plot in plots.items():
        try:
            files.append(_draw(plot, study, folder / f"{name}.png"))
        except (ValueError, RuntimeError) as error:  # e.g. all values equal
            log.warning("no plot of the %s: %s", name, error)
    return files


def _rungs(study: optuna.Study) -> Any:
    """Optuna's picture of the last trials' intermediate values."""
    from optuna.visualization import matplotlib as draw

    trials = study.get_trials(deepcopy=False)[-_MAX_CURVES:]
    axes = draw.plot_intermediate_values(_study_of(trials, study))
    if len(trials) > _MAX_LEGEND and (legend := axes.get_legend()) is not None:
        legend.remove()
    return axes


def _importances(found: Importances) -> Any:
    """Shares with their intervals; grey where nothing can be said."""
    from matplotlib import pyplot

    rows = [*reversed(found.rows)]
    colours = {"matters": "tab:blue", "little": "lightsteelblue", None: "lightgrey"}
    _, axes = pyplot.subplots()
    for place, row in enumerate(rows):
        axes.barh(place, row.share, color=colours[row.says])
        axes.plot([row.low, row.high], [place, place], color="black", linewidth=1)
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of the order of trials that it explains, with its 95 % interval")
    said = "" if found.says_something else ": nothing can be said yet"
    axes.set_title(f"Importances, {found.num_trials} trials{said}")
    return axes


def _study_of(trials: list[FrozenTrial], of: optuna.Study) -> optuna.Study:
    study = optuna.create_study(direction=of.direction)
    study.add_trials(trials)
    for name in of.metric_names or ():
        name_metric(study, name)
    return study


def _draw(plot: Callable[[optuna.Study], Any], study: optuna.Study, path: Path) -> Path:
    from matplotlib import pyplot

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        plot(study)
    pyplot.gcf().set_size_inches(10, 6)
    pyplot.savefig(path, dpi=110, bbox_inches="tight")
    pyplot.close("all")
    return path
