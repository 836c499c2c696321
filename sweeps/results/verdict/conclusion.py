"""Verdict: what a sweep says, as one value, however far it has come."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from peft_jobs import State
from sweeps.confirmation.confirmed import Confirmation
from sweeps.confirmation.seeds import Interval
from sweeps.file_names import EXPORT_FILE
from sweeps.records.layout import SweepFolder
from sweeps.records.reader import final_trainings
from sweeps.results.importances import Importances, importances
from sweeps.results.leaderboard import Leaderboard, Row
from sweeps.results.states import INTERRUPTED, RUNNING
from sweeps.results.verdict import sentences
from sweeps.results.verdict.bounds import Bound, touched
from sweeps.results.verdict.rivals import Comparison, comparisons
from sweeps.results.verdict.spending import Spending, spending_of
from sweeps.study.study import SweepStudy

FEW_COMPLETE = 10
"""Trials that ran to the end, below which more of them are the first thing to try."""


@dataclass(frozen=True)
class Choice:
    """The configuration to train."""

    number: int
    """Of the trial that has it."""
    params: dict[str, Any]
    """Of its parameters, those that vary between trials."""
    recorded: float
    """The objective of that trial: too good, as that of the best of many is."""
    expected: Interval | None
    """The objective under a fresh seed, in the mean; None before a confirmation."""
    num_seeds: int
    """That it was trained under for `expected`; 0 before a confirmation."""
    probability_best: float | None
    """Of being the best of those that were confirmed."""
    behind_first: Interval | None
    """How much worse it is than the one with the best mean, of which it is not told apart and
    which is larger; None if it is that one itself, and before a confirmation."""
    trainable_parameters: int | None
    peak_memory_bytes: int | None
    minutes: float
    unbeaten: tuple[str, ...]
    """Of the board's references, those that the recorded trial does not beat."""
    test: Interval | None = None
    """What `export` measured on the test rows, which it reads once and for this trial alone, with
    the 95 % interval of this adapter on other rows; the value alone where that is not known. None
    before an export into the sweep's folder."""


@dataclass(frozen=True)
class Step:
    """What to do next."""

    command: str | None
    """To be typed; None if it is a change of the sweep file."""
    why: str


@dataclass(frozen=True)
class Verdict:
    """What may be said of a sweep now; `sentences` says it."""

    sweep: str
    metric: str
    direction: str
    status: Literal["running", "interrupted", "ended"]
    chosen: Choice | None
    """None while no trial can be ranked."""
    tied: tuple[int, ...]
    """Other trials that are not told apart: from the first by repeats, else from the winner by the
    validation rows."""
    failed_repeats: tuple[int, ...]
    """Trials whose configuration did not run to its end under each fresh seed."""
    comparisons: tuple[Comparison, ...]
    bounds: tuple[Bound, ...]
    importances: Importances
    """What decided how trials did, and what did not."""
    spent: Spending
    trained: tuple[str, ...]
    """Final trainings of its configurations, by name; none are known of an object store."""
    steps: tuple[Step, ...]
    headline: str
    """One sentence: who won, against what, among how many, and how sure that is."""

    def sentences(self, with_steps: bool = True) -> list[str]:
        """All of it in plain words, the headline first, what to do next last."""
        return [*sentences.told(self), *(sentences.next_steps(self) if with_steps else ())]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "sentences": self.sentences()}


def verdict_of(board: Leaderboard, study: SweepStudy, folder: SweepFolder) -> Verdict:
    """The verdict of the study whose board this is.

    Whether rows are told apart before a confirmation is known only of a board with intervals.
    """
    choice, spent, status = _choice(board, folder), spending_of(study), _status(board)
    tied = _tied(board)
    trials = study.trials()
    return Verdict(
        sweep=board.sweep,
        metric=board.metric,
        direction=board.direction,
        status=status,
        chosen=choice,
        tied=tied,
        failed_repeats=board.confirmation.failed if board.confirmation else (),
        comparisons=tuple(comparisons(board, study)),
        bounds=()
        if choice is None or board.final is not None
        else tuple(touched(trials[choice.number], [trials[n] for n in tied], study.spec.trial)),
        importances=importances(study.launched(), board.direction),
        spent=spent,
        trained=() if folder.in_store else final_trainings(folder.storage, board.sweep),
        steps=tuple(_steps(board, choice, spent, status, folder)),
        headline=sentences.headline(board),
    )


def _choice(board: Leaderboard, folder: SweepFolder) -> Choice | None:
    found = board.confirmation
    row = board.chosen
    if row is None or row.value is None:
        return None
    best = None if found is None else found.winner
    expected, num_seeds = (None, 0) if best is None else (best.expected, best.num_seeds)
    if board.final is not None:
        expected, num_seeds = board.final.expected, len(board.final.values)
    return Choice(
        number=row.number,
        params={name: row.params[name] for name in board.varying if name in row.params},
        recorded=row.value,
        expected=expected,
        num_seeds=num_seeds,
        probability_best=None if best is None else best.probability_best,
        behind_first=None if found is None else _behind_first(found),
        trainable_parameters=row.trainable_parameters,
        peak_memory_bytes=row.peak_memory_bytes,
        minutes=row.minutes,
        unbeaten=row.unbeaten,
        test=_tested(row.number, board.metric, folder),
    )


def _tested(number: int, metric: str, folder: SweepFolder) -> Interval | None:
    text = folder.read(folder.exports / f"trial-{number:04d}" / EXPORT_FILE)
    record = json.loads(text or "{}")
    name = f"test/{metric.removeprefix('validation/')}"
    value = (record.get("test") or {}).get(name)
    if value is None or record["trial"] != number:
        return None
    return Interval(value, *record.get("test_intervals", {}).get(name, (value, value)))


def _behind_first(found: Confirmation) -> Interval | None:
    return None if found.recommended == found.rows[0].number else found.winner.behind


def _tied(board: Leaderboard) -> tuple[int, ...]:
    found = board.confirmation
    if board.final is not None:
        return ()  # seeds of one configuration
    if found is not None:
        return tuple(row.number for row in found.tied if row.number != found.recommended)

    def is_tied(row: Row) -> bool:
        return row.is_told_apart is False or row.rank == 1

    return tuple(row.number for row in board.rows[1:] if is_tied(row))


def _status(board: Leaderboard) -> Literal["running", "interrupted", "ended"]:
    states = {row.state for row in board.rows}
    if RUNNING in states:
        return "running"
    return "interrupted" if INTERRUPTED in states else "ended"


def _steps(
    board: Leaderboard, choice: Choice | None, spent: Spending, status: str, folder: SweepFolder
) -> Iterator[Step]:
    name = f"{board.sweep}{folder.option}"
    if status == "interrupted":
        yield Step(f"peft-sweep resume {name}", "trials were left unfinished")
    if status != "ended":
        return
    failed = [row.number for row in board.rows if row.state == State.FAIL]
    if choice is None:
        if failed:
            yield Step(f"peft-sweep show {board.sweep} {failed[0]}{folder.option}", "why it failed")
        return
    if choice.unbeaten:
        yield Step(None, "train longer, or at other learning rates: nothing was learned yet")
    if board.final is not None:
        yield Step(f"peft-sweep export {name}", "the median seed, scored again as written")
        return
    if spent.num_complete < FEW_COMPLETE:
        yield Step(None, f"more trials: {spent.num_complete} that ran to the end are few")
    if board.confirmation is None:
        yield Step(f"peft-sweep confirm {name}", "is that the winner under other seeds too?")
    yield Step(f"peft-sweep export {name}", "its adapter, scored again as written")
    yield Step(f"peft-sweep train {name}", "it on all the data, under fresh seeds")
