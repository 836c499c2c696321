"""Parts of a leaderboard: the best of each value of a parameter, and the Pareto front."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from peft_jobs import SpecError
from peft_jobs.spec.mistakes import suggest
from sweeps.results.leaderboard import COLUMNS, Leaderboard, Row
from sweeps.spec.metrics import default_direction, numbers


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

    Beaten is a row if another is as good in every name and better in one. Less is better, but a
    metric counts in its natural direction, the objective in that of the sweep, and a name may say
    its own: `validation/own:max`. A row
    that lacks one of the names is left out. Raises SpecError for fewer than two names, and for one
    that no ranked row has.
    """
    ways = dict(_way(text, board) for text in names)
    if len(ways) < 2:
        raise SpecError(f"a front needs two names or more, got {', '.join(names) or 'none'}")
    ranked = [(row, numbers(row)) for row in board.rows if row.rank is not None]
    known = {each for _, found in ranked for each in found}
    for name in ways:
        if name not in known:
            raise SpecError(f"no ranked trial has recorded {name!r}{_hint(name, known)}")
    points = [
        (
            row,
            tuple(-found[name] if way == "max" else found[name] for name, way in ways.items()),
        )
        for row, found in ranked
        if all(name in found for name in ways)
    ]
    front = [row for row, point in points if not any(_beats(other, point) for _, other in points)]
    shown = [name for name in ways if name not in (board.metric, *COLUMNS)]
    return replace(board, rows=tuple(front), shown=tuple(shown))


def _way(text: str, board: Leaderboard) -> tuple[str, str]:
    """A name of a front, and whether its `min` or its `max` is wanted."""
    name, colon, way = text.rpartition(":")
    if colon and way in ("min", "max"):
        return name, way
    direction = board.direction if text == board.metric else default_direction(text)
    return text, (direction or "min")[:3]


def _beats(one: Sequence[float], other: Sequence[float]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


def _hint(name: str, known: Iterable[str]) -> str:
    names = list(known)
    return suggest(name, names) if names else "; no trial has any yet"
