"""Writes the report of a sweep: what its page shows, in order."""

import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path

from peft_jobs.storage.files import write_whole
from sweeps.errors import Unavailable
from sweeps.file_names import REPORT_FILE
from sweeps.records.reader import read_record
from sweeps.report import facts, figures
from sweeps.report.explained import explained
from sweeps.report.lanes import timeline
from sweeps.report.page import Figure, Section, paragraphs, render, text
from sweeps.report.parallel import parallel_coordinates
from sweeps.report.repeats import seeds
from sweeps.report.tables import board_table, confirmed_table, facts_table
from sweeps.results.curves import read_curves
from sweeps.results.leaderboard import Leaderboard
from sweeps.results.recorded_sweep import RecordedSweep
from sweeps.results.verdict import Verdict
from sweeps.results.verdict.sentences import intervals_hold
from sweeps.results.words import shown

log = logging.getLogger(__name__)

_LOSS_CURVES = 10
"""Trials whose training loss is drawn: each is a file to read."""


def write_report(sweep: RecordedSweep, path: Path) -> None:
    """Write the page of a sweep as it stands, whole; what is there is replaced.

    SpecError if its trials cannot be compared, OSError if the file cannot be written.
    """
    record, board = read_record(sweep.folder.storage, sweep.name), sweep.leaderboard(intervals=True)
    write_whole(path, make_report(sweep, record, board, sweep.verdict(board)))


def keep_report(sweep: RecordedSweep, board: Leaderboard, verdict: Verdict) -> None:
    """Write the page into the folder of a sweep that is being driven; `board` is the sweep's, with
    its intervals. What goes wrong is logged: no sweep fails because of a page."""
    folder = sweep.folder
    path = folder.path / REPORT_FILE
    try:
        record = json.loads(folder.record.read_text(encoding="utf-8"))
        write_whole(path, make_report(sweep, record, board, verdict))
    except Exception:  # of plotly, Optuna, the disk: the sweep's own records stand
        again = f"peft-sweep report {folder.name}{folder.option}"
        log.exception("there is no report %s; `%s` tries again", path, again)
    else:
        folder.keep(path)


def make_report(
    sweep: RecordedSweep, record: facts.Record, board: Leaderboard, verdict: Verdict
) -> str:
    """The page as HTML, of what `sweep.json` and the board (with its intervals) say of a sweep."""
    return render(f"Sweep {board.sweep}", [*_sections(sweep, record, board, verdict)])


def _sections(
    sweep: RecordedSweep, record: facts.Record, board: Leaderboard, verdict: Verdict
) -> Iterator[Section]:
    study = sweep.study
    trials = study.launched()
    said = f'<div class="verdict">{paragraphs(verdict.sentences(with_steps=False))}</div>'
    yield Section("", said + _written())
    if (row := board.chosen) is not None:
        steps = "\n".join(step.command or f"# {step.why}" for step in verdict.steps)
        params = {name: shown(value) for name, value in row.params.items()}
        told = f"{facts_table(params)}<pre>{text(steps)}</pre>"
        yield Section(f"What to train: trial {row.number:04d}", told)
    if board.confirmation is not None:
        yield Section(
            "Trained again under fresh seeds",
            confirmed_table(board) + paragraphs([intervals_hold(board.confirmation)]),
            _drawn(seeds(board, study, None if verdict.chosen is None else verdict.chosen.test)),
        )
    yield Section("Leaderboard", board_table(board))
    yield Section(
        "How the search went",
        "",
        [figures.history(board), figures.by_samples(board, trials), *_drawn(_losses(sweep, board))],
    )
    if importances := explained(verdict.importances):
        yield Section("What mattered", "", [importances])
    if compared := parallel_coordinates(board, study):
        yield Section("Parameters of the ranked trials", "", [compared])
    if costs := figures.against_costs(board):
        yield Section("What the objective costs", "", costs)
    yield Section(
        "When trials ran, and where",
        "",
        _drawn(timeline(study.trials())),
    )
    yield Section("Cost", facts_table(facts.cost(board, study, verdict.spent)))
    if words := facts.planned(sweep.folder, sweep.spec):
        yield Section("What the plan said", facts_table(words))
    yield Section("Data", facts_table(facts.data(sweep.spec, record)))
    yield Section("Environment", facts_table(facts.environment(sweep.spec, record)))
    if (source := sweep.folder.read(sweep.folder.source)) is not None:
        folded = f"<details><summary>sweep.yaml</summary><pre>{text(source)}</pre></details>"
        yield Section("Sweep file", folded)


def _written() -> str:
    now = time.strftime("%Y-%m-%d %H:%M %Z")
    return f'<p class="soft">As the study stood on {text(now)}.</p>'


def _drawn(figure: Figure | None) -> list[Figure]:
    return [] if figure is None else [figure]


def _losses(sweep: RecordedSweep, board: Leaderboard) -> Figure | None:
    first = [row.number for row in board.rows if row.rank is not None][:_LOSS_CURVES]
    try:
        return figures.training_loss(board, read_curves(sweep.study, sweep.folder, first))
    except Unavailable as error:
        log.warning("the report lacks training losses: %s", error)
        return None
