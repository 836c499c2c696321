"""Figures of a sweep's objective: by trial, by samples, and against what trials cost."""

from collections.abc import Iterable, Sequence
from typing import Any

from optuna.trial import FrozenTrial

from sweeps.report.page import Figure, text
from sweeps.results.curves import Curves
from sweeps.results.leaderboard import Leaderboard, Row
from sweeps.results.selection import pareto_front
from sweeps.results.states import word
from sweeps.spec.metrics import as_loss, numbers

_COLOURS = {"COMPLETE": "--complete", "PRUNED": "--pruned", "FAIL": "--failed"}
_UNRANKED = "complete, not ranked"


def history(board: Leaderboard) -> Figure:
    """The objective by number of trial: where each ended, and the best ranked one so far."""
    measured = sorted((r for r in board.rows if r.value is not None), key=lambda r: r.number)
    traces: list[dict[str, Any]] = []
    for name, rows in _by_state(measured).items():
        state = rows[0].state
        marker = {"color": _COLOURS.get(state, "--running"), "size": 7}
        if name != word("COMPLETE"):
            marker["symbol"] = "circle-open"
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": text(name),
                "x": [row.number for row in rows],
                "y": [row.value for row in rows],
                "text": [told(row, board) for row in rows],
                "hovertemplate": "%{text}<extra></extra>",
                "marker": marker,
            }
        )
    best: list[Row] = []
    for row in measured:
        if row.rank is not None and (not best or _loss(row, board) < _loss(best[-1], board)):
            best.append(row)
    if best:
        last = measured[-1].number
        line = {"shape": "hv", "color": "--best", "width": 2}
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": "best so far",
                "x": [*(row.number for row in best), last],
                "y": [*(row.value for row in best), best[-1].value],
                "hoverinfo": "skip",
                "line": line,
            }
        )
    return {
        "caption": "By trial, in the order asked. Those that were stopped: their last value.",
        "data": traces,
        "layout": {"xaxis": {"title": {"text": "trial"}}, "yaxis": _objective(board)},
    }


def by_samples(board: Leaderboard, trials: Sequence[FrozenTrial]) -> Figure:
    """The objective at the rungs and at the end, by samples seen: a line for each trial."""
    of = {trial.number: trial for trial in trials}
    ranked = [row for row in board.rows if row.rank not in (1, None)]
    others = [row for row in board.rows if row.rank is None]
    first = [row for row in board.rows if row.rank == 1]
    groups = {
        "not ranked": (others, "--pruned", 1.0),
        "ranked": (ranked, "--complete", 1.2),
        "rank 1": (first, "--best", 3.0),
    }
    traces = []
    for name, (rows, colour, width) in groups.items():
        xs: list[int | None] = []
        ys: list[float | None] = []
        texts: list[str] = []
        for row in rows:
            points = _points(of[row.number])
            if points:
                xs += [*(x for x, _ in points), None]
                ys += [*(y for _, y in points), None]
                texts += [f"trial {row.number:04d}"] * (len(points) + 1)
        if xs:
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers",
                    "name": name,
                    "x": xs,
                    "y": ys,
                    "text": texts,
                    "hovertemplate": "%{text}: %{y:.4f} at %{x:,} samples<extra></extra>",
                    "line": {"color": colour, "width": width},
                    "marker": {"size": 5},
                }
            )
    layout = {"xaxis": {"title": {"text": "samples seen"}}, "yaxis": _objective(board)}
    caption = "By samples: what each trial was compared by at the rungs, and its end."
    return {"caption": caption, "data": traces, "layout": layout}


def training_loss(board: Leaderboard, curves: Curves) -> Figure | None:
    """The training loss of some trials by samples seen, the first of them heavier; None without."""
    traces = []
    for row in board.rows:
        points = [
            (point.progress.samples, point.progress.metrics["train/loss"])
            for point in curves.rows
            if point.trial == row.number and "train/loss" in point.progress.metrics
        ]
        if points:
            style = ("--best", 3.0) if row.rank == 1 else ("--complete", 1.2)
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "name": f"trial {row.number:04d}",
                    "x": [x for x, _ in points],
                    "y": [y for _, y in points],
                    "hovertemplate": "%{fullData.name}: %{y:.4f} at %{x:,} samples<extra></extra>",
                    "line": {"color": style[0], "width": style[1]},
                    "showlegend": False,
                }
            )
    if not traces:
        return None
    title = {"text": "train/loss"}
    return {
        "caption": f"Training loss of the first {len(traces)} of the board.",
        "data": traces[::-1],  # the first one on top
        "layout": {"xaxis": {"title": {"text": "samples seen"}}, "yaxis": {"title": title}},
    }


def against_costs(board: Leaderboard) -> list[Figure]:
    """The objective of ranked trials against memory, parameters and minutes, with their fronts."""
    best = board.best
    if best is None:
        return []
    peak = best.peak_memory_bytes
    memory = next((f"memory/{name}" for name, size in best.memory.items() if size == peak), "")
    costs = {
        memory: ("peak memory, GiB", 2**30, "linear"),
        "trainable_parameters": ("trainable parameters", 1, "log"),
        "minutes": ("minutes", 1, "linear"),
    }
    ranked = [(row, numbers(row)) for row in board.rows if row.rank is not None]
    found: list[Figure] = []
    for name, (title, unit, scale) in costs.items():
        rows = [(row, known[name]) for row, known in ranked if name in known]
        if len({cost for _, cost in rows}) < 2:
            continue
        front = [(r, numbers(r)[name]) for r in pareto_front(board, [board.metric, name]).rows]
        front.sort(key=lambda pair: pair[1])
        dots = {
            "type": "scatter",
            "mode": "markers",
            "name": "ranked",
            "x": [cost / unit for _, cost in rows],
            "y": [row.value for row, _ in rows],
            "text": [told(row, board) for row, _ in rows],
            "hovertemplate": "%{text}<extra></extra>",
            "marker": {"color": "--complete", "size": 7},
        }
        line = {
            "type": "scatter",
            "mode": "lines+markers",
            "name": "nothing is better in both",
            "x": [cost / unit for _, cost in front],
            "y": [row.value for row, _ in front],
            "hoverinfo": "skip",
            "line": {"shape": "hv", "color": "--best", "width": 2},
            "marker": {"color": "--best", "size": 9},
        }
        ticks = {"dtick": "D2"} if scale == "log" else {"nticks": 6}  # at 1, 2, 5, 10, ...
        layout = {
            "xaxis": {"title": {"text": title}, "type": scale, **ticks},
            "yaxis": _objective(board),
        }
        caption = f"Against {title.partition(',')[0]}"
        found.append({"caption": caption, "data": [line, dots], "layout": layout})
    return found


def told(row: Row, board: Leaderboard) -> str:
    """A trial in the lines of a hover label."""
    value = "" if row.value is None else f"{board.metric} {row.value:.4f}"
    params = (f"{name} {row.params[name]}" for name in board.varying if name in row.params)
    lines = (f"trial {row.number:04d}, {_state(row)}", value, *params)
    return "<br>".join(text(line) for line in lines if line)


def _objective(board: Leaderboard) -> dict[str, Any]:
    way = "less" if board.direction == "minimize" else "more"
    return {"title": {"text": text(f"{board.metric} ({way} is better)")}}


def _loss(row: Row, board: Leaderboard) -> float:
    return as_loss(row.value or 0.0, board.direction)


def _state(row: Row) -> str:
    if row.state == "COMPLETE" and row.rank is None:
        return _UNRANKED
    return word(row.state) + ("" if row.kind is None else f" ({row.kind.replace('_', ' ')})")


def _by_state(rows: Iterable[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        name = _UNRANKED if _state(row) == _UNRANKED else word(row.state)
        found.setdefault(name, []).append(row)
    return found


def _points(trial: FrozenTrial) -> list[tuple[int, float]]:
    """(samples, objective) at each rung, and at the end of a complete trial."""
    points = dict(trial.intermediate_values)
    if trial.value is not None:
        points[int(trial.user_attrs["result"]["samples"])] = trial.value
    return sorted(points.items())
