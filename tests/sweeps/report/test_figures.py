"""Figures and facts of a report against values by hand."""

import re
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer
from optuna.trial import FrozenTrial, TrialState, create_trial

from sweeps.confirmation.seeds import Interval
from sweeps.report import facts
from sweeps.report.explained import explained
from sweeps.report.figures import against_costs, by_samples, history
from sweeps.report.lanes import timeline
from sweeps.report.parallel import parallel_coordinates
from sweeps.report.pictures import draw
from sweeps.report.repeats import seeds
from sweeps.report.tables import board_table
from sweeps.results.importances import Importance, Importances
from sweeps.results.leaderboard import Leaderboard, Row
from sweeps.results.recorded_sweep import open_sweep
from sweeps.run import launch
from sweeps.study.reruns import repeats


def row(number: int, value: float | None, rank: int | None = None, **changed: Any) -> Row:
    state = "COMPLETE" if rank else "PRUNED"
    made = Row(
        rank, number, state, None, value, None, None, 0.0, {"adapter.r": number}, {}, None, None
    )
    return replace(made, **changed)


def board(*rows: Row, direction: str = "minimize") -> Leaderboard:
    return Leaderboard("waves", "validation/loss", direction, rows, None)


def trace(figure: Any, name: str) -> dict[str, Any]:
    (found,) = (each for each in figure["data"] if each["name"] == name)
    return dict(found)


def test_the_best_so_far_follows_ranked_trials_only() -> None:
    rows = row(4, 1.0, 1), row(0, 2.0, 2), row(3, 2.5, 3), row(1, 0.5), row(2, None, state="FAIL")
    figure = history(board(*rows))
    line = trace(figure, "best so far")
    assert (line["x"], line["y"]) == ([0, 4, 4], [2.0, 1.0, 1.0])
    assert trace(figure, "complete")["x"] == [0, 3, 4]
    assert (trace(figure, "pruned")["x"], trace(figure, "pruned")["y"]) == ([1], [0.5])
    assert len(figure["data"]) == 3, "what has measured nothing is nowhere"
    rows = row(2, 3.0, 1), row(0, 2.0, 2), row(1, 1.0, 3)
    best = trace(history(board(*rows, direction="maximize")), "best so far")
    assert (best["x"], best["y"]) == ([0, 2, 2], [2.0, 3.0, 3.0])


def test_a_picture_has_the_figures_points() -> None:
    """Read back from what matplotlib has drawn; a gap in a line stays one."""
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    figure = {
        "caption": "Two",
        "data": [
            {
                "type": "scatter",
                "mode": "lines",
                "name": "a &amp; b",
                "x": [1, 2, None, 3],
                "y": ["first", "second", None, "first"],
                "line": {"shape": "hv", "color": "--best"},
            },
            {
                "type": "bar",
                "x": [0.25, 0.5],
                "y": ["first", "second"],
                "marker": {"color": ["--best", "--pruned"]},
                "error_x": {"array": [0.5, 0.25], "arrayminus": [0.25, 0.125], "color": "--ink"},
            },
        ],
        "layout": {
            "xaxis": {"title": {"text": "trial"}, "range": [0, 4]},
            "yaxis": {"categoryarray": ["first", "second"]},
        },
    }
    draw(figure, axes)
    line = axes.lines[0]
    assert line.get_drawstyle() == "steps-post"
    assert line.get_label() == "a & b"
    (xs, ys) = line.get_data()
    assert [*zip(xs[:2], ys[:2], strict=True)] == [(1, 0), (2, 1)]
    assert np.isnan(xs[2])
    assert [bar.get_width() for bar in axes.patches] == [0.25, 0.5]
    (bars,) = [c for c in axes.containers if isinstance(c, ErrorbarContainer)]
    (segments,) = (lines.get_segments() for lines in bars.lines[2])
    assert [(low[0], high[0]) for low, high in segments] == [(0.0, 0.75), (0.375, 0.75)]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["first", "second"]
    assert axes.yaxis_inverted(), "the first one on top, as on the page"
    assert (axes.get_xlabel(), axes.get_xlim()) == ("trial", (0, 4))


def test_lines_by_samples_go_through_rungs_to_the_end_of_complete_trials() -> None:
    result = {"result": {"samples": 900}}
    complete = create_trial(value=1.0, intermediate_values={100: 3.0, 300: 2.0}, user_attrs=result)
    weak = create_trial(
        state=TrialState.PRUNED, intermediate_values={100: 5.0}, user_attrs={"result": {}}
    )
    complete.number, weak.number = 0, 1
    figure = by_samples(board(row(0, 1.0, 1), row(1, 5.0)), [complete, weak])
    first, other = trace(figure, "rank 1"), trace(figure, "not ranked")
    assert first["x"] == [100, 300, 900, None]
    assert first["y"] == [3.0, 2.0, 1.0, None]
    assert (other["x"], other["y"]) == ([100, None], [5.0, None])
    assert len(first["text"]) == 4


def test_fronts_hold_what_nothing_beats_in_both() -> None:
    peaks = {1: 2**30, 2: 2**29, 3: 2**31}
    values = {1: 1.0, 2: 2.0, 3: 3.0}  # 3 is worse than 1, and larger
    rows = [
        row(
            number,
            values[number],
            number,
            memory={"peak_rss_bytes": peak},
            peak_memory_bytes=peak,
            metrics={"validation/loss": values[number]},
            trainable_parameters=10,
            minutes=float(number),
        )
        for number, peak in peaks.items()
    ]
    memory, minutes = against_costs(board(*rows))
    line = trace(memory, "nothing is better in both")
    assert (line["x"], line["y"]) == ([0.5, 1.0], [2.0, 1.0])
    assert sorted(trace(memory, "ranked")["x"]) == [0.5, 1.0, 2.0]
    assert minutes["layout"]["xaxis"]["title"]["text"] == "minutes"
    assert trace(minutes, "nothing is better in both")["x"] == [1.0]
    assert against_costs(board(row(0, 1.0))) == []


def test_ticks_of_a_decade_are_numbers_that_can_be_read() -> None:
    rows = [
        row(number, 1.0 + number, number + 1, trainable_parameters=size, metrics={}, minutes=1.0)
        for number, size in enumerate((13_056, 52_224))
    ]
    rows = [replace(r, metrics={"validation/loss": r.value or 0.0}) for r in rows]
    (figure,) = against_costs(board(*rows))
    axis = figure["layout"]["xaxis"]
    assert axis["tickvals"] == [10_000, 20_000, 50_000, 100_000]
    assert axis["ticktext"] == ["10k", "20k", "50k", "100k"]


def test_the_difference_to_the_first_stands_beside_the_value() -> None:
    rows = row(0, 1.0, 1), row(1, 1.5, 2, interval=(-0.25, 0.5)), row(2, 3.0)
    page = board_table(board(*rows))
    first, second, third = re.findall(r"<tr class=.*?</tr>", page)
    assert re.findall(r">([^<]*)</td>", second)[:4] == ["2", "0001", "1.5000", "-0.2500 to +0.5000"]
    assert re.findall(r'data-key="([^"]*)"', second)[:4] == ["2", "1", "1.5", "-0.25"]
    assert re.findall(r">([^<]*)</td>", first)[3] == re.findall(r">([^<]*)</td>", third)[3] == ""


NOON = datetime(2026, 1, 1, 12)


def bar(number: int, start: int, end: int, **seen: Any) -> FrozenTrial:
    """A trial that ran from one second after noon to another."""
    known: dict[str, Any] = {"result": {"provenance": seen}}
    made = create_trial(value=1.0, user_attrs=known)
    made.number = number
    made.datetime_start = NOON + timedelta(seconds=start)
    made.datetime_complete = NOON + timedelta(seconds=end)
    return made


def test_trials_at_the_same_time_in_one_place_have_lanes_of_their_own() -> None:
    gpu: dict[str, Any] = {"node": "a", "device": "H200", "visible_devices": "1"}
    trials = [
        bar(0, 0, 10, **gpu),
        bar(1, 5, 15, **gpu),
        bar(2, 10, 12, **gpu),
        bar(3, 0, 20, node="b", device="cpu", visible_devices=""),
    ]
    trials[1].user_attrs["confirm_of"] = 0
    figure = timeline(trials)
    assert figure is not None
    bars = trace(figure, "complete")
    assert bars["y"] == ["a, GPU 1", "a, GPU 1", "b"]
    assert bars["x"] == [10_000, 2_000, 20_000]
    assert bars["base"][1] == "2026-01-01T12:00:10"
    assert trace(figure, "repeat")["y"] == ["a, GPU 1 (2)"]
    assert timeline([create_trial(state=TrialState.PRUNED)]) is None


def test_parallel_lines_are_those_of_the_ranked_trials(sweep: Callable[..., Any]) -> None:
    spec = sweep()
    launch(spec)
    found = open_sweep(spec.storage, spec.name)
    ranked = [r for r in found.leaderboard().rows if r.rank is not None]
    figure = parallel_coordinates(found.leaderboard(), found.study)
    assert figure is not None
    lines = figure["data"]
    assert len(lines) == len(ranked) > 2
    axes = list(figure["layout"]["xaxis"]["ticktext"])
    assert axes[0] == "loss"
    assert sorted(axes[1:]) == ["learning_rate", "r", "target_modules"]
    told = {line["customdata"][0][1] for line in lines}
    assert told == {f"{r.value:.3g}" for r in ranked}
    best = min(ranked, key=lambda r: r.value or 0.0)
    (first,) = (line for line in lines if line["line"]["color"] == "--best")
    assert first is lines[-1], "on top of the others"
    place = axes.index("learning_rate")
    assert first["customdata"][place][1] == f"{best.params['training.learning_rate']:.3g}"


def test_shares_are_grey_where_nothing_can_be_said() -> None:
    rows = (
        Importance("adapter.r", 0.5, 0.25, 0.75, 0.0, 12, "matters"),
        Importance("<b>", 0.125, 0.0, 0.25, 0.4, 12, None),
    )
    figure = explained(Importances(rows, 12, 5))
    assert figure is not None
    (bars,) = figure["data"]
    assert (bars["y"], bars["x"]) == (["adapter.r", "&lt;b&gt;"], [0.5, 0.125])
    assert bars["error_x"]["arrayminus"] == bars["error_x"]["array"] == [0.25, 0.125]
    assert bars["marker"]["color"] == ["--best", "--pruned"]
    assert "Grey" in figure["caption"]
    silent = explained(Importances(rows[1:], 12, 5))
    assert silent is not None
    assert "Nothing can be said yet" in silent["caption"]
    assert explained(Importances((), 3, 3)) is None


def test_seeds_are_drawn_as_the_study_has_them(sweep: Callable[..., Any]) -> None:
    spec = sweep(confirm={"seeds": 2, "candidates": 3, "max_trials": 6}, pruner="none")
    launch(spec)
    found = open_sweep(spec.storage, spec.name)
    figure = seeds(found.leaderboard(), found.study)
    assert figure is not None
    drawn = sorted(zip(*(trace(figure, "one seed each")[axis] for axis in "yx"), strict=True))
    told = [(f"trial {t.user_attrs['confirm_of']:04d}", t.value) for t in repeats(found.study)]
    assert drawn == sorted(told)
    assert len(drawn) == 6
    confirmation = found.leaderboard().confirmation
    assert confirmation is not None
    expected = trace(figure, "expected, 95 %")
    for one, x, low, high in zip(
        confirmation.rows,
        expected["x"],
        expected["error_x"]["arrayminus"],
        expected["error_x"]["array"],
        strict=True,
    ):
        assert x == one.expected.value
        assert x - low == pytest.approx(one.expected.low)
        assert x + high == pytest.approx(one.expected.high)
    tested = seeds(found.leaderboard(), found.study, Interval(1.5, 1.25, 2.0))
    assert tested is not None
    test = trace(tested, "test rows, 95 %")
    lane = f"trial {confirmation.recommended:04d}, test"
    assert (test["x"], test["y"]) == ([1.5], [lane])
    lanes = tested["layout"]["yaxis"]["categoryarray"]
    assert lanes[lanes.index(lane) - 1] == lane.removesuffix(", test")
    assert (test["error_x"]["arrayminus"], test["error_x"]["array"]) == ([0.25], [0.5])
    assert trace(tested, "expected, 95 %") == expected
    first, second, third = confirmation.rows
    far = replace(third, expected=Interval(100.0, 99.0, 101.0))
    board = replace(
        found.leaderboard(), confirmation=replace(confirmation, rows=(first, second, far))
    )
    squeezed = seeds(board, found.study)
    assert squeezed is not None
    low, high = squeezed["layout"]["xaxis"]["range"]
    assert low < first.expected.low < first.expected.high < high < 50
    assert "lie far to the side" in squeezed["caption"]


def test_costs_are_sums_of_minutes_and_what_the_study_has_noted(
    sweep: Callable[..., Any],
) -> None:
    spec = sweep(confirm={"seeds": 2, "candidates": 3, "max_trials": 6})
    launch(spec)
    found = open_sweep(spec.storage, spec.name)
    rows = [row(0, 1.0, 1, minutes=1.5), row(1, 2.0, 2, minutes=2.25), row(2, 3.0, minutes=0.5)]
    spent = replace(
        found.verdict().spent, hours=0.05, gpu_hours=1.5, share_saved=0.25, num_pruned=7
    )
    told = facts.cost(board(*rows), found.study, spent)
    repeated = sum(sum(t.user_attrs["result"]["seconds"].values()) for t in repeats(found.study))
    assert told.pop("minutes of repeats", "0.0") == f"{repeated / 60:.1f}"
    assert told == {
        "driven": "3.0 minutes",
        "GPUs held, together": "1.50 hours",
        "minutes of complete trials": "3.8",
        "minutes of all others": "0.5",
        "pruning saved": "25 % of the samples of complete and weak trials, by stopping 7 early",
    }
