"""Figures of the page as PNG files, drawn by matplotlib, for what shows no page.

It takes what these figures consist of, points, lines and bars with intervals, in the page's light
colours.
"""

import html
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna.trial import FrozenTrial

from sweeps.report.explained import explained
from sweeps.report.figures import by_samples, history
from sweeps.report.page import Figure, colours
from sweeps.report.repeats import seeds
from sweeps.results.leaderboard import Leaderboard
from sweeps.results.verdict import Verdict
from sweeps.study.study import SweepStudy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

log = logging.getLogger(__name__)

_MARKS = {"circle-open": "o", "diamond": "D", "square": "s"}
_PIXELS = 110
"""Of an inch."""
_WIDTH, _HEIGHT = 9.0, 5.0
"""Inches, of a figure without a height of its own."""


def write_pictures(
    board: Leaderboard, study: SweepStudy, verdict: Verdict, folder: Path
) -> list[Path]:
    """Draw the search, what mattered and the confirmation into `folder`; returns the files, none
    before the first complete trial. A picture that cannot be drawn is logged."""
    if board.best is None:
        return []
    trials: Sequence[FrozenTrial] = study.launched()
    test = None if verdict.chosen is None else verdict.chosen.test
    figures: dict[str, Figure | None] = {
        "history": history(board),
        "rungs": by_samples(board, trials),
        "importances": explained(verdict.importances),
        "confirmation": seeds(board, study, test),
    }
    folder.mkdir(parents=True, exist_ok=True)
    return [*_written({name: f for name, f in figures.items() if f is not None}, folder)]


def _written(figures: Mapping[str, Figure], folder: Path) -> Iterator[Path]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    for name, figure in figures.items():
        path = folder / f"{name}.png"
        try:
            height = figure["layout"].get("height")
            inches = _HEIGHT if height is None else max(2.0, height / _PIXELS)
            _, axes = pyplot.subplots(figsize=(_WIDTH, inches))
            draw(figure, axes)
            pyplot.savefig(path, dpi=_PIXELS, bbox_inches="tight")
            yield path
        except (ValueError, RuntimeError) as error:
            log.warning("no picture of the %s: %s", name, error)
        finally:
            pyplot.close("all")


def draw(figure: Figure, axes: "Axes") -> None:
    """Draw a figure of the page on matplotlib's axes."""
    from matplotlib.ticker import MaxNLocator

    palette, layout = colours(), figure["layout"]
    names = layout["yaxis"].get("categoryarray")
    places = None if names is None else {name: place for place, name in enumerate(names)}
    for trace in figure["data"]:
        xs = [float("nan") if x is None else x for x in trace["x"]]
        ys = [float("nan") if y is None else places[y] if places else y for y in trace["y"]]
        _draw_trace(trace, xs, ys, palette, axes)
        if all(isinstance(x, int) for x in trace["x"] if x is not None):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if places is not None:
        axes.set_yticks(range(len(places)), [html.unescape(name) for name in places])
        axes.invert_yaxis()
    for axis, label in ((layout["xaxis"], axes.set_xlabel), (layout["yaxis"], axes.set_ylabel)):
        if "title" in axis:
            label(html.unescape(axis["title"]["text"]))
    if "range" in layout["xaxis"]:
        axes.set_xlim(*layout["xaxis"]["range"])
    axes.set_title(figure["caption"], fontsize="small", loc="left", wrap=True)
    axes.grid(color=palette["--line"], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if layout.get("showlegend", True) and len(figure["data"]) > 1:
        axes.legend(frameon=False, fontsize="small")


def _draw_trace(
    trace: Mapping[str, Any],
    xs: Sequence[float],
    ys: Sequence[float],
    palette: Mapping[str, str],
    axes: "Axes",
) -> None:
    marker, line = trace.get("marker", {}), trace.get("line", {})
    given = line.get("color") or marker["color"]
    name = html.unescape(trace.get("name", ""))
    if trace["type"] == "bar":
        axes.barh(ys, xs, height=0.55, color=[palette[each] for each in given])
    else:
        kind = trace["mode"].split("+")
        colour, symbol = palette[given], marker.get("symbol", "circle")
        axes.plot(
            *(xs, ys),
            color=colour,
            label=name,
            linewidth=line.get("width", 1.0) if "lines" in kind else 0,
            drawstyle="steps-post" if line.get("shape") == "hv" else "default",
            marker=_MARKS.get(symbol, "o") if "markers" in kind else "",
            markersize=marker.get("size", 6) * 0.8,
            markerfacecolor="none" if symbol.endswith("-open") else colour,
        )
    if (bars := trace.get("error_x")) is not None:
        ends = [bars["arrayminus"], bars["array"]]
        axes.errorbar(xs, ys, xerr=ends, fmt="none", ecolor=palette[bars["color"]], capsize=3)
