"""The leaderboard: ranks what may be compared, keeps the rest in sight."""

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from peft_jobs import Kind, Progress, SpecError, State, TrialResult
from sweeps.results.leaderboard import COMPARABLE, Leaderboard, Row, make_leaderboard
from sweeps.results.reports import cells, header, summary, to_csv
from sweeps.study.study import SweepStudy

Open = Callable[..., SweepStudy]
SEEN = {"model": "m", "data": "d", "template": "t"}


def end(study: SweepStudy, loss: float | None, kind: Kind | None = None, **seen: Any) -> int:
    """Ask a point and end it at once."""
    point = study.ask()
    assert point is not None
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
    assert words in summary(board)
    classes = replace(board, metric="validation/accuracy", baseline=None)
    assert "accuracy 0.7500 (majority class: 1.5000)" in summary(classes)


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
    second = end(study, 2.0, provenance={**SEEN, part: "another"})
    with pytest.raises(SpecError, match=f"trials {first} and {second} differ in their {part}"):
        make_leaderboard(study)


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
