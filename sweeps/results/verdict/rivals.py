"""What the chosen configuration is better than: by how much, and how sure that is."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from sweeps.confirmation.confirmed import Confirmation
from sweeps.results.leaderboard import Leaderboard
from sweeps.spec.metrics import as_loss
from sweeps.study.reruns import given_numbers
from sweeps.study.study import SweepStudy

Basis = Literal["seeds", "rows", "seeds and rows"]


@dataclass(frozen=True)
class Comparison:
    """The chosen configuration against something else. `low` to `high` hold the difference with
    95 %; they are None where nothing says how sure it is."""

    other: str
    """As a sentence names it: `the base without adapter`, `trial 0005, the next one`."""
    number: int | None
    """Of the trial that it is; None of a reference."""
    value: float
    """Of the other one, in the sweep's metric."""
    better_by: float
    """Positive where the chosen one is better."""
    low: float | None = None
    high: float | None = None
    basis: Basis | None = None
    """What is taken as drawn anew: training seeds, with rows or without (it is of configurations),
    or rows alone (it is of these two adapters)."""

    @property
    def is_sure(self) -> bool:
        """Whether the interval excludes that the chosen one is no better."""
        return self.low is not None and self.low > 0


def comparisons(board: Leaderboard, study: SweepStudy) -> list[Comparison]:
    """With the references, with what was given to be evaluated, with the next one told apart; of a
    final training, whose trials are seeds of one configuration, with the references alone."""
    others = () if board.final is not None else _trials(board, study)
    return [*_references(board), *others]


def _references(board: Leaderboard) -> Iterator[Comparison]:
    found, chosen = board.confirmation, board.chosen
    for words, value in board.references.items():
        other, loss = f"the {words}", as_loss(value, board.direction)
        if found is not None:
            expected = found.winner.expected
            losses = [as_loss(v, board.direction) for v in (expected.low, expected.high)]
            by = loss - as_loss(expected.value, board.direction)
            low, high = loss - max(losses), loss - min(losses)
            yield Comparison(other, None, value, by, low, high, _basis(found))
        elif chosen is not None and chosen.value is not None:
            yield Comparison(other, None, value, loss - as_loss(chosen.value, board.direction))


def _basis(found: Confirmation) -> Basis:
    return "seeds and rows" if found.holds_for_rows else "seeds"


def _trials(board: Leaderboard, study: SweepStudy) -> Iterator[Comparison]:
    """Each trial once: what is trained today, then the next one that is told apart."""
    given = given_numbers(study)
    measured = [*_measured(board)]
    today = [each for each in measured if each.number in given]
    yield from (replace(each, other=f"{each.other}, which was given") for each in today)
    following = next((each for each in measured if each.is_sure), None)
    if following is not None and following not in today:
        yield replace(following, other=f"{following.other}, the next one that is told apart")


def _measured(board: Leaderboard) -> Iterator[Comparison]:
    """With every trial that has an interval, the best one first."""
    found, best = board.confirmation, board.best
    if found is not None:
        for row in found.rows:
            if row.number != found.recommended:
                gap, value = row.behind_winner, row.expected.value
                name = f"trial {row.number:04d}"
                yield Comparison(
                    name, row.number, value, gap.value, gap.low, gap.high, _basis(found)
                )
        return
    for other in board.rows:
        if other.rank is None or other.interval is None or best is None:
            continue
        assert other.value is not None
        assert best.value is not None
        ends = [as_loss(value, board.direction) for value in other.interval]
        by = as_loss(other.value, board.direction) - as_loss(best.value, board.direction)
        name = f"trial {other.number:04d}"
        yield Comparison(name, other.number, other.value, by, min(ends), max(ends), "rows")
