"""Parts of a leaderboard: nothing is ranked anew, and nothing better is left out."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peft_jobs import SpecError
from sweeps.results.leaderboard import Leaderboard, Row
from sweeps.results.reports import cells, header
from sweeps.results.selection import best_of_each, pareto_front


def row(number: int, loss: float, rank: int | None = None, **known: Any) -> Row:
    """A trial; complete where it has a rank."""
    state = "PRUNED" if rank is None else "COMPLETE"
    fields: dict[str, Any] = {
        "peak_memory_bytes": None,
        "trainable_parameters": 1,
        "minutes": 1.0,
        "params": {},
        "metrics": {"validation/loss": loss},
        "adapter": None,
        "error": None,
    }
    return Row(rank, number, state, None, loss, **{**fields, **known})


def board(*rows: Row, direction: str = "minimize") -> Leaderboard:
    return Leaderboard("s", "validation/loss", direction, rows, None)


def numbers(part: Leaderboard) -> list[int]:
    return [each.number for each in part.rows]


def test_the_best_of_each_value_keeps_the_boards_order_and_ranks() -> None:
    method = [{"adapter.method": name} for name in ("oft", "lora", "oft", "ia3", "lora")]
    rows = [row(n, n, n + 1 if n < 3 else None, params=method[n]) for n in range(5)]
    part = best_of_each(board(*rows), "adapter.method")
    assert numbers(part) == [0, 1, 3]  # of ia3 only a pruned trial is there
    assert [each.rank for each in part.rows] == [1, 2, None]


def test_rows_without_the_parameter_have_no_best() -> None:
    rows = [row(0, 1.0, 1), row(1, 2.0, 2, params={"adapter.r": [4]})]
    assert numbers(best_of_each(board(*rows), "adapter.r")) == [1]


def test_an_unknown_parameter_is_answered_with_the_nearest() -> None:
    rows = board(row(0, 1.0, 1, params={"adapter.method": "lora"}))
    with pytest.raises(SpecError, match=r"'adapter\.metod'; did you mean 'adapter\.method'\?"):
        best_of_each(rows, "adapter.metod")
    with pytest.raises(SpecError, match="no trial has any yet"):
        best_of_each(board(), "adapter.method")


def test_the_front_holds_what_nothing_beats() -> None:
    sizes = {0: 300, 1: 100, 2: 200, 3: 100, 4: 50}
    rows = [row(n, float(n), n + 1, memory={"peak_rss_bytes": sizes[n]}) for n in range(4)]
    pruned = row(4, 0.5, None, memory={"peak_rss_bytes": 50})
    names = ["validation/loss", "memory/peak_rss_bytes"]
    assert numbers(pareto_front(board(*rows, pruned), names)) == [0, 1]


def test_equal_rows_stand_on_the_front_together() -> None:
    front = pareto_front(board(row(0, 1.0, 1), row(1, 1.0, 2)), ["validation/loss", "minutes"])
    assert numbers(front) == [0, 1]


def test_an_objective_to_maximize_counts_in_its_direction() -> None:
    rows = [row(0, 0.9, 1, minutes=2.0), row(1, 0.8, 2, minutes=1.0), row(2, 0.7, 3, minutes=1.5)]
    front = pareto_front(board(*rows, direction="maximize"), ["validation/loss", "minutes"])
    assert numbers(front) == [0, 1]


def test_a_name_may_say_its_direction() -> None:
    f1 = [0.5, 0.7, 0.6]
    rows = [
        row(n, float(n), n + 1, metrics={"validation/f1": f1[n], "own": f1[n]}) for n in range(3)
    ]
    assert numbers(pareto_front(board(*rows), ["minutes", "own:max"])) == [1]
    assert numbers(pareto_front(board(*rows), ["minutes", "own"])) == [0]
    assert numbers(pareto_front(board(*rows), ["minutes", "validation/f1"])) == [1], "as all say"


def test_what_a_front_is_about_has_columns() -> None:
    known = {"metrics": {"validation/f1": 0.5}, "memory": {"peak_rss_bytes": 2**20}}
    part = pareto_front(
        board(row(0, 1.0, 1, **known)), ["validation/f1:max", "memory/peak_rss_bytes"]
    )
    titles, values = header(part), cells(part.rows[0], part)
    assert dict(zip(titles, values, strict=True))["validation/f1"] == "0.5000"
    assert dict(zip(titles, values, strict=True))["memory/peak_rss_bytes"] == "1 MiB"
    assert "validation/f1" not in header(board(row(0, 1.0, 1, **known)))


def test_a_front_of_unknown_or_too_few_names_is_refused() -> None:
    rows = board(row(0, 1.0, 1, memory={"peak_rss_bytes": 7}))
    with pytest.raises(SpecError, match=r"did you mean 'memory/peak_rss_bytes'\? known: memory/"):
        pareto_front(rows, ["validation/loss", "memory/peak_rs_bytes"])
    with pytest.raises(SpecError, match="two names or more, got minutes"):
        pareto_front(rows, ["minutes", "minutes"])


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_every_row_off_the_front_is_beaten_by_one_on_it(points: list[tuple[int, int]]) -> None:
    rows = [row(n, float(a), n + 1, minutes=float(b)) for n, (a, b) in enumerate(points)]
    front = numbers(pareto_front(board(*rows), ["validation/loss", "minutes"]))
    assert front
    for n, (a, b) in enumerate(points):
        beaten = [
            m for m in front if points[m] != (a, b) and points[m][0] <= a and points[m][1] <= b
        ]
        assert (n in front) == (not beaten)
