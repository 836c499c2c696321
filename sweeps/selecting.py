"""Parts of a leaderboard: the best of each value of a parameter, and the Pareto front."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from peft_jobs import SpecError
from peft_jobs.mistakes import suggest
from sweeps.leaderboard import Leaderboard, Row

_COUNTED = ("trainable_parameters", "minutes")
"""Numbers of a row that are no metrics."""


def best_of_each(board: Leaderboard, name: str) -> Leaderboard:
    """The first row of every value of parameter `name`, in the board's order.

    A value of which no trial is complete keeps its best other row, so that nothing goes unseen.
    Raises SpecError if no row has the parameter.
    """
    found: dict[str, Row] = {}
    for row in board.rows:
        if name in row.params:
            found.setdefault(repr(row.params[name]), row)
    if not found:
        known = {each for row in board.rows for each in row.params}
        raise SpecError(f"no trial has a parameter {name!r}{_hint(name, known)}")
    return replace(board, rows=tuple(found.values()))


def pareto_front(board: Leaderboard, names: Sequence[str]) -> Leaderboard:
    """The ranked rows that no other ranked row beats in all of `names`, in the board's order.

    Beaten is a row if another is as good in every name and better in one. The objective counts in
    its own direction; of everything else less is better. A row that lacks one of the names is left
    out. Raises SpecError for fewer than two names, and for one that no ranked row has.
    """
    if len(set(names)) < 2:
        raise SpecError(f"a front needs two names or more, got {', '.join(names) or 'none'}")
    ranked = [(row, _numbers(row)) for row in board.rows if row.rank is not None]
    known = {each for _, numbers in ranked for each in numbers}
    for name in names:
        if name not in known:
            raise SpecError(f"no ranked trial has recorded {name!r}{_hint(name, known)}")
    signs = [-1 if name == board.metric and board.direction == "maximize" else 1 for name in names]
    points = [
        (row, tuple(sign * numbers[name] for sign, name in zip(signs, names, strict=True)))
        for row, numbers in ranked
        if all(name in numbers for name in names)
    ]
    front = [row for row, point in points if not any(_beats(other, point) for _, other in points)]
    return replace(board, rows=tuple(front))


def _beats(one: Sequence[float], other: Sequence[float]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


def _numbers(row: Row) -> dict[str, float]:
    """Metrics, memory peaks as constraints name them, and what else is counted."""
    numbers: dict[str, float] = dict(row.metrics)
    numbers |= {f"memory/{name}": float(count) for name, count in row.memory.items()}
    counted = ((name, getattr(row, name)) for name in _COUNTED)
    return numbers | {name: float(value) for name, value in counted if value is not None}


def _hint(name: str, known: Iterable[str]) -> str:
    names = list(known)
    return suggest(name, names) if names else "; no trial has any yet"
