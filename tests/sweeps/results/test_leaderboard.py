"""The leaderboard: ranks what may be compared, keeps the rest in sight."""

import csv
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pandas
import pytest

from peft_jobs import Kind, Progress, SpecError, State, TrialResult
from sweeps.results.comparable import COMPARABLE, CONTENTS
from sweeps.results.leaderboard import Leaderboard, Row
from sweeps.results.ranking import make_leaderboard
from sweeps.results.reports import cells, header, markdown, to_csv, to_html
from sweeps.results.told_apart import told_apart
from sweeps.results.verdict.sentences import headline
from sweeps.study.study import SweepStudy

Open = Callable[..., SweepStudy]
SEEN = {"model": "m", "data": "d", "template": "t"}


def end(
    study: SweepStudy,
    loss: float | None,
    kind: Kind | None = None,
    sampled: dict[str, Any] | None = None,
    **seen: Any,
) -> int:
    """Ask a point and end it at once; `sampled` are parameters of it beside the space's."""
    point = study.ask()
    assert point is not None
    if sampled is not None:
        study._set(study._live[point.number], params={**point.params, **sampled})
    metrics = {} if loss is None else {study.spec.objective.metric: loss}
    seen = {"provenance": SEEN, "metrics": metrics, **seen}
    state = State.COMPLETE if kind is None else kind.state
    study.tell(point.number, TrialResult(state=state, kind=kind, **seen))
    return point.number


def test_complete_trials_are_ranked_and_the_others_follow(open_study: Open) -> None:
    study = open_study()
    study.optuna.set_user_attr("baseline", {"validation/loss": 4.0})
    numbers = [
        end(study, 2.0, seconds={"train": 30.0, "evaluate": 30.0}, trainable_parameters=7),
        end(study, 1.0, memory={"peak_rss_bytes": 5, "peak_allocated_bytes": 3}, adapter="x/a"),
        end(study, None, Kind.BUG, error="broke"),
        end(study, 3.0),
    ]
    weak = study.ask()
    running = study.ask()
    assert weak is not None
    assert running is not None
    progress = Progress(step=1, samples=1, tokens=1, metrics={"validation/loss": 0.5}, rung=100)
    study.report(weak.number, progress)
    study.tell(weak.number, TrialResult(state=State.PRUNED, kind=Kind.WEAK))

    board = make_leaderboard(study)
    assert [row.number for row in board.rows] == [
        *(numbers[i] for i in (1, 0, 3)),
        weak.number,
        numbers[2],
        running.number,
    ]
    assert [row.rank for row in board.rows] == [1, 2, 3, None, None, None]
    assert board.best is board.rows[0]
    assert (board.rows[0].value, board.rows[0].peak_memory_bytes) == (1.0, 3)
    assert board.rows[0].adapter == "x/a"
    assert (board.rows[1].minutes, board.rows[1].trainable_parameters) == (1.0, 7)
    assert (board.rows[3].state, board.rows[3].kind, board.rows[3].value) == ("PRUNED", "weak", 0.5)
    assert (board.rows[4].state, board.rows[4].error) == ("FAIL", "broke")
    assert board.rows[5].state == "INTERRUPTED"
    assert board.baseline == 4.0
    assert board.varying == list(board.rows[0].params)
    assert json.loads(json.dumps(board.to_json()))["rows"][0]["rank"] == 1


def test_the_winner_is_told_with_what_it_must_beat(open_study: Open) -> None:
    study = open_study()
    end(study, 0.75)
    assert "majority" not in make_leaderboard(study).to_json()
    study.optuna.set_user_attr("majority", {"validation/loss": 1.5, "validation/f1": 0.1})
    study.optuna.set_user_attr("baseline", {"validation/loss": 2.0})
    board = make_leaderboard(study)
    assert board.to_json()["majority"] == 1.5
    words = "(base without adapter: 2.0000; mean of the training rows: 1.5000)"
    assert words in headline(board)
    classes = replace(board, metric="validation/accuracy", baseline=None)
    assert "accuracy 0.7500 (majority class: 1.5000)" in headline(classes)


def test_a_leaderboard_is_a_pure_function_of_the_study(open_study: Open) -> None:
    study = open_study()
    for loss in (2.0, 1.0, 3.0):
        end(study, loss)
    before = study.optuna.get_trials()
    assert make_leaderboard(study) == make_leaderboard(open_study())
    assert study.optuna.get_trials() == before


def test_maximize_ranks_the_largest_first(open_study: Open) -> None:
    objective = {"metric": "validation/bits_per_byte", "direction": "maximize"}
    study = open_study(objective=objective)
    numbers = [end(study, value) for value in (0.1, 0.9, 0.5)]
    board = make_leaderboard(study)
    assert [row.number for row in board.rows] == [numbers[1], numbers[2], numbers[0]]
    assert board.direction == "maximize"


def test_ties_go_to_the_earlier_trial(open_study: Open) -> None:
    study = open_study()
    numbers = [end(study, 1.0) for _ in range(3)]
    assert [row.number for row in make_leaderboard(study).rows] == numbers


def test_a_violated_constraint_makes_a_row_infeasible(open_study: Open) -> None:
    study = open_study(constraints={"memory/peak_rss_bytes": 100.0})
    large = end(study, 1.0, memory={"peak_rss_bytes": 101})
    small = end(study, 2.0, memory={"peak_rss_bytes": 100})
    board = make_leaderboard(study)
    assert [(row.number, row.rank) for row in board.rows] == [(small, 1), (large, None)]


def test_no_winner_while_nothing_is_complete(open_study: Open) -> None:
    study = open_study()
    assert make_leaderboard(study).best is None
    end(study, None, Kind.BUG)
    board: Leaderboard = make_leaderboard(study)
    assert board.best is None
    assert board.rows[0].rank is None


@pytest.mark.parametrize("part", COMPARABLE)
def test_rows_that_saw_different_things_are_not_ranked_together(
    open_study: Open, part: str
) -> None:
    study = open_study()
    first = end(study, 1.0)
    end(study, None, Kind.BUG, provenance={part: "was never compared"})
    make_leaderboard(study)
    rates = {"data.subset": 5, "task.prompt": "{x}"}  # sampled, so that contents may differ
    second = end(study, 2.0, provenance={**SEEN, part: "another"}, sampled=rates)
    with pytest.raises(SpecError, match=f"trials {first} and {second} differ in their {part}"):
        make_leaderboard(study)


@pytest.mark.parametrize("part", CONTENTS)
def test_what_was_changed_in_place_is_not_ranked_with_what_saw_it_as_it_was(
    open_study: Open, part: str
) -> None:
    study = open_study()
    seen = {**SEEN, **dict.fromkeys(CONTENTS, "as it was"), "device": "cpu"}
    first = end(study, 2.0, provenance=seen)
    better = end(study, 1.0, provenance={**seen, part: "changed"})
    again = end(study, 3.0, provenance=seen)
    board = make_leaderboard(study)
    assert [(row.number, row.rank) for row in board.rows] == [
        (first, 1),
        (again, 2),
        (better, None),
    ]
    assert board.rows[2].changed == f"other {part} than trial {first}"
    assert f"other {part} than trial {first}" in cells(board.rows[2], board)
    assert "1 complete trial is not ranked" in headline(board)


def test_weights_are_compared_by_quantization_and_device(open_study: Open) -> None:
    study = open_study()
    for weights, device, scheme in (("a", "cpu", "nf4"), ("b", "gpu", "nf4"), ("c", "cpu", "int8")):
        seen = {**SEEN, "weights": weights, "device": device}
        end(study, 1.0, provenance=seen, sampled={"quantization.scheme": scheme})
    assert [row.changed for row in make_leaderboard(study).rows] == [None] * 3


def test_null_is_told_from_what_a_row_does_not_have() -> None:
    params: list[dict[str, Any]] = [
        {"adapter.r": None, "adapter.target_modules": ["q_proj", "v_proj"], "training.bf16": True},
        {"training.bf16": False},
    ]
    rows = tuple(
        Row(1, number, "COMPLETE", None, 1.0, None, None, 0.0, given, {}, None, None)
        for number, given in enumerate(params)
    )
    board = Leaderboard("s", "validation/loss", "minimize", rows, None)
    names = header(board)[-3:]
    shown = [dict(zip(names, cells(row, board)[-3:], strict=True)) for row in rows]
    assert shown[0] == {
        "adapter.r": "null",
        "adapter.target_modules": "q_proj v_proj",
        "training.bf16": "true",
    }
    assert shown[1] == {"adapter.r": "", "adapter.target_modules": "", "training.bf16": "false"}
    first, second = csv.DictReader(io.StringIO(to_csv(board)))
    assert first["adapter.r"] == "null"
    assert json.loads(first["adapter.target_modules"]) == ["q_proj", "v_proj"]
    assert (second["adapter.r"], second["training.bf16"]) == ("", "false")


def test_exact_ties_share_a_rank_and_the_next_one_counts_them(open_study: Open) -> None:
    study = open_study()
    for value in (1.0, 2.0, 1.0, 1.5, 2.0):
        end(study, value)
    board = make_leaderboard(study)
    ranks = [(row.number, row.rank) for row in board.rows]
    assert ranks == [(0, 1), (2, 1), (3, 3), (1, 4), (4, 4)]


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_references_stand_among_the_rows_and_what_does_not_beat_them_is_marked(
    open_study: Open, direction: str
) -> None:
    sign = 1 if direction == "minimize" else -1
    study = open_study(objective={"metric": "validation/perplexity", "direction": direction})
    study.optuna.set_user_attr("baseline", {"validation/perplexity": sign * 3.0})
    study.optuna.set_user_attr("majority", {"validation/perplexity": sign * 2.0})
    for value in (2.5, 1.0, 3.0, 4.0):
        end(study, sign * value)
    end(study, None, Kind.BUG)
    board = make_leaderboard(study)
    lines = [cells(entry, board)[1] for entry in board.entries]
    assert lines == ["0001", "majority", "0000", "base", "0002", "0003", "0004"]
    notes = [row.note for row in board.rows]
    both = "no better than the base; no better than the majority"
    assert notes == ["", "no better than the majority", both, both, ""]
    assert header(board)[-1] == "note"
    assert [cells(row, board)[-1] for row in board.rows] == notes
    assert "; 4 of 5 ran to the end." in headline(board)
    known = board.to_json()["rows"]
    assert "note" not in known[0]
    assert known[2]["note"] == both
    text = list(csv.DictReader(io.StringIO(to_csv(board))))
    assert [line["number"] for line in text] == ["1", "", "0", "", "2", "3", "4"]
    assert text[1]["note"] == "majority class"
    assert text[4]["note"] == both
    for page in (to_html(board, []), markdown(board, [])):
        assert both in page
        table = page[page.rindex("peak memory") :]
        order = [table.index(word) for word in ("0001", "majority", "base", "0003")]
        assert order == sorted(order)


def test_a_winner_that_beats_nothing_is_told_so(open_study: Open) -> None:
    study = open_study()
    study.optuna.set_user_attr("baseline", {"validation/loss": 1.0})
    end(study, 1.0)
    assert "it is no better than the base without adapter; 1 of 1 ran" in headline(
        make_leaderboard(study)
    )


def rows_of(losses: Any, first: int = 1) -> pandas.DataFrame:
    numbers = range(first, first + len(losses))
    return pandas.DataFrame({"row": numbers, "loss_sum": losses, "count": 1})


def test_rows_that_are_not_told_apart_are_marked(open_study: Open) -> None:
    source = np.random.default_rng(3)
    base = source.normal(2.0, 1.0, 100)
    near, far = base + source.normal(0.01, 0.5, 100), base + source.normal(0.5, 0.5, 100)
    frames = {0: rows_of(near), 1: rows_of(far), 2: rows_of(base), 3: rows_of(base + 1, first=2)}
    study = open_study()
    for number in range(3):
        end(study, float(frames[number]["loss_sum"].mean()))
    end(study, float(frames[3]["loss_sum"].mean()))
    plain = make_leaderboard(study)
    (first, second, third, fourth) = (row.number for row in plain.rows)
    board = told_apart(plain, lambda number: frames[number])
    told = {row.number: row.is_told_apart for row in board.rows}
    assert (first, fourth) in ((0, 3), (2, 3))
    assert told == {first: None, second: False, third: True, 3: None}
    low, high = board.rows[2].interval or (0.0, 0.0)
    assert low < board.rows[2].value - board.rows[0].value < high  # type: ignore[operator]
    assert board.rows[1].note == "not told apart"
    assert "1 is not told apart from it (at least: one seed each)" in headline(board)
    known = board.to_json()["rows"][2]
    assert known["interval"] == (low, high)
    line = list(csv.DictReader(io.StringIO(to_csv(board))))[2]
    assert (float(line["difference_low"]), float(line["difference_high"])) == (low, high)
    frame = board.to_frame().set_index("number")
    assert frame.loc[third, "difference_low"] == low
    assert frame.loc[second, "note"] == "not told apart"


def test_rows_of_another_evaluation_or_none_tell_nothing(open_study: Open) -> None:
    study = open_study()
    losses = np.arange(1.0, 5.0)
    end(study, float(losses.mean()))
    end(study, float(losses.mean()) + 1)
    plain = make_leaderboard(study)
    for frames in ({0: rows_of(losses)}, {0: rows_of(losses), 1: rows_of(losses)}, {}):
        assert told_apart(plain, frames.get) == plain
    own = replace(plain, metric="validation/own")
    assert told_apart(own, lambda number: rows_of(losses)) == own


class Counted(dict[str, Any]):
    """Counts how often all of it is looked at."""

    looks = 0

    def __iter__(self) -> Iterator[str]:
        Counted.looks += 1
        return super().__iter__()


def test_a_written_board_looks_at_each_row_a_few_times_however_many_there_are() -> None:
    rows = tuple(
        Row(1, n, "COMPLETE", None, 1.0, None, None, 0.0, Counted(r=n), {}, None, None)
        for n in range(500)
    )
    board = Leaderboard("s", "validation/loss", "minimize", rows, None)
    for write in (to_csv, lambda board: to_html(board, [])):
        Counted.looks = 0
        assert write(board).count("\n") >= len(rows)
        assert Counted.looks <= 4 * len(rows)
