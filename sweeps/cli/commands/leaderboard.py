"""`leaderboard` and `list`: what the studies say, without starting anything."""

from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import typer
from rich.table import Table

from peft_jobs import SpecError
from peft_jobs.storage import object_store
from peft_jobs.storage.files import write_whole
from sweeps.cli.display.table import DEFAULT_ROWS, print_board, print_sentences
from sweeps.cli.options import listed
from sweeps.cli.screen import out, print_json, say, size
from sweeps.housekeeping.leftovers import lost_studies
from sweeps.housekeeping.remains import size_of
from sweeps.records.layout import SweepFolder
from sweeps.results.prediction_error import prediction_errors
from sweeps.results.recorded_sweep import RecordedSweep, Unreadable, open_sweeps
from sweeps.results.reports import to_csv, to_html, to_json
from sweeps.results.selection import best_of_each, pareto_front
from sweeps.results.states import ENDED, STATES, state_of, word


def leaderboard(
    sweep: RecordedSweep,
    limit: int | None,
    json: bool,
    csv: bool,
    html: Path | None,
    by: str | None = None,
    pareto: str | None = None,
) -> None:
    """Print the leaderboard, or a part of it, as a table, JSON or CSV, or write it as a page."""
    if sum((json, csv, html is not None)) > 1:
        raise SpecError("give one of --json, --csv and --html")
    if html is not None and html.exists():
        raise SpecError(f"{html} is there already; name another file, or remove it")
    board = sweep.leaderboard(intervals=True)
    verdict = sweep.verdict(board)
    part = best_of_each(board, by) if by is not None else board
    if pareto is not None:
        part = pareto_front(part, listed(pareto))
    cut = replace(part, rows=part.rows[:limit]) if limit else part
    if json:
        print_json(to_json(cut, verdict))
    elif csv:
        typer.echo(to_csv(cut), nl=False)
    elif html is not None:
        write_whole(html, to_html(cut, verdict.sentences()))
        say(f"Wrote {html}")
    else:
        out.print(f"Sweep {sweep.name}: {verdict.headline}\n", markup=False)
        print_board(part, out, DEFAULT_ROWS if limit is None else limit)
        print_sentences(verdict.sentences()[1:], out)
        told = [f"Predicted: {error.sentence()}." for error in prediction_errors(sweep.results())]
        print_sentences(told, out)


@dataclass(frozen=True)
class Listed:
    """One line of `list`."""

    name: str
    trials: dict[str, int]
    """By state."""
    n_trials: int | None
    metric: str | None
    best_trial: int | None
    best_value: float | None
    bytes: int
    """Of the sweep's folder."""
    unreadable: str | None = None


def list_sweeps(storage: Path, study_url: str | None, json: bool) -> None:
    """Print every sweep of the storage."""
    url = object_store.origin(storage)
    if url is None and not storage.is_dir():
        raise SpecError(f"there is no folder {storage}; give the sweeps' folder with --storage")
    listed = [_listed(sweep, storage) for sweep in open_sweeps(storage, study_url)]
    for lost in lost_studies(storage):
        again = f"peft-sweep delete {lost.name}{SweepFolder(storage, lost.name).option}"
        say(f"{lost.name} has a study of {lost.trials} trials and no folder: `{again}` removes it")
    if json:
        print_json([asdict(item) for item in listed])
    elif not listed:
        where = url or storage
        say(f"No sweep in {where} yet; `peft-sweep init` writes a sweep file to start from.")
    else:
        out.print(_table(listed))


def _listed(sweep: RecordedSweep | Unreadable, storage: Path) -> Listed:
    num_bytes = size_of(SweepFolder(storage, sweep.name))
    if isinstance(sweep, Unreadable):
        return Listed(sweep.name, {}, None, None, None, None, num_bytes, sweep.reason)
    spec = sweep.spec
    try:
        best = sweep.leaderboard().best
    except SpecError as error:  # trials that must not be ranked together
        return Listed(spec.name, _states(sweep), None, None, None, None, num_bytes, str(error))
    return Listed(
        name=spec.name,
        trials=_states(sweep),
        n_trials=spec.budget.n_trials,
        metric=spec.objective.metric,
        best_trial=None if best is None else best.number,
        best_value=None if best is None else best.value,
        bytes=num_bytes,
    )


def _states(sweep: RecordedSweep) -> dict[str, int]:
    holder = sweep.study.holder
    counts = Counter(state_of(trial, holder) for trial in sweep.study.launched())
    return {state: counts[state] for state in STATES}


def _table(listed: list[Listed]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    table.add_column("sweep", no_wrap=True)
    for title in ("trials", *map(word, STATES), "size"):
        table.add_column(title, justify="right")
    table.add_column("best")
    for item in listed:
        counts = item.trials
        shown = [str(counts[state]) if counts.get(state) else "" for state in STATES]
        ended = sum(counts.get(state, 0) for state in ENDED)
        of = f"{ended} of {item.n_trials}" if item.n_trials else ""
        table.add_row(item.name, of, *shown, size(item.bytes), _best(item))
    return table


def _best(item: Listed) -> str:
    if item.unreadable is not None:
        return item.unreadable.splitlines()[0]
    if item.best_trial is None:
        return "none yet"
    return f"trial {item.best_trial:04d}, {item.metric} {item.best_value:.4f}"
