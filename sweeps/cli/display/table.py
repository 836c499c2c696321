"""The leaderboard as a table that fits the terminal."""

from collections.abc import Collection, Sequence
from dataclasses import replace

from rich.console import Console
from rich.table import Table

from sweeps.cli.screen import short_names
from sweeps.confirmation.confirmed import Confirmation
from sweeps.results.leaderboard import Leaderboard
from sweeps.results.reports import CONFIRMED, cells, confirmed_cells, header
from sweeps.results.verdict.sentences import intervals_hold

DEFAULT_ROWS = 20
_LEAVE_OUT = ("minutes", "trainable", "peak memory", "state")
"""Columns that give way in a narrow terminal, in this order."""
_ORDINARY = {"pruned (weak)": "pruned"}
"""Other kinds are worth a word."""


def print_board(board: Leaderboard, console: Console, limit: int = DEFAULT_ROWS) -> None:
    """Print the first `limit` rows (0: all), and what was left out for want of room."""
    left_out: list[str] = []
    table = leaderboard_table(board, limit)
    if _width(table, console) > console.width:
        table = leaderboard_table(board, limit, short=True)
    while _width(table, console) > console.width and len(left_out) < len(_LEAVE_OUT):
        left_out.append(_LEAVE_OUT[len(left_out)])
        table = leaderboard_table(board, limit, short=True, left_out=left_out)
    console.print(table)
    more = len(board.rows) - limit
    notes = [f"{more} more rows: --limit 0"] if limit and more > 0 else []
    if left_out:
        notes.append(f"a wider terminal also shows {', '.join(left_out)}")
    if notes:
        console.print("; ".join(notes), style="dim")
    if board.confirmation is not None:
        _print_confirmation(board.confirmation, console)


def print_sentences(sentences: Sequence[str], console: Console) -> None:
    """Print each on a line of its own."""
    console.print()
    for sentence in sentences:
        console.print(sentence, markup=False, soft_wrap=True)


def _print_confirmation(found: Confirmation, console: Console) -> None:
    """What was trained again."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for title in CONFIRMED:
        table.add_column(title, justify="right", no_wrap=True)
    for row in found.rows:
        style = None if row.group == 1 else "dim"
        is_chosen = row.number == found.recommended
        table.add_row(*confirmed_cells(row), style="bold green" if is_chosen else style)
    console.print(f"\nTrained again under fresh seeds, {found.num_repeats} times in all:\n")
    console.print(table)
    console.print(f"\n{intervals_hold(found)}", style="dim")


def leaderboard_table(
    board: Leaderboard, limit: int, short: bool = False, left_out: Collection[str] = ()
) -> Table:
    """The table; `short` drops the sections from the names of parameters (`adapter.r` -> `r`)."""
    names = short_names(board.varying) if short else {}
    titles = header(board)
    kept = [index for index, title in enumerate(titles) if title not in left_out]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for index in kept:
        title = names.get(titles[index], titles[index])
        table.add_column(_broken(title), justify="right", no_wrap=True, vertical="bottom")
    shown = replace(board, rows=board.rows[:limit]) if limit else board
    for row in shown.entries:
        styles = {1: "bold green", None: "dim"}
        style = "italic" if isinstance(row, tuple) else styles.get(row.rank)
        values = cells(row, board)
        table.add_row(*(_ORDINARY.get(values[index], values[index]) for index in kept), style=style)
    return table


def _broken(title: str) -> str:
    """A long title on several lines: `validation/loss` and `adapter.lora_alpha` are one word."""
    for mark in "./_ ":
        title = title.replace(mark, f"{mark}\n")
    return title


def _width(table: Table, console: Console) -> int:
    unbounded = console.options.update(max_width=10_000)
    return console.measure(table, options=unbounded).maximum
