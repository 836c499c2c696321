"""Tables of a report: the leaderboard, which sorts by any column, and lists of facts."""

from collections.abc import Mapping, Sequence

from sweeps.report.page import name_text, text
from sweeps.results.leaderboard import Leaderboard, Row
from sweeps.results.reports import CONFIRMED, cells, confirmed_cells, header

_FIRST = 30
"""Rows that are shown before all are asked for; `page.css` has the same number."""
_DIFFERENCE = "to the first, 95 %"
_WORDS = "note"


def board_table(board: Leaderboard) -> str:
    """The leaderboard, with the intervals of the differences to its first row where it has them."""
    has_intervals = any(row.interval is not None for row in board.rows)
    titles = header(board)
    place = titles.index(board.metric) + 1
    if has_intervals:
        titles.insert(place, _DIFFERENCE)
    lines = []
    for entry in board.entries:
        shown, keys = cells(entry, board), _keys(entry, board)
        if has_intervals:
            interval = None if isinstance(entry, tuple) else entry.interval
            shown.insert(place, "" if interval is None else "{:+.4f} to {:+.4f}".format(*interval))
            keys.insert(place, "" if interval is None else interval[0])
        kind = "reference" if isinstance(entry, tuple) else _KINDS.get(entry.rank, "")
        lines.append(_line(titles, shown, keys, kind))
    heads = "".join(
        f'<th{_class(title)}><button type="button">{name_text(title)}</button></th>'
        for title in titles
    )
    first, more = "", ""
    if len(lines) > _FIRST:
        first = " first"
        more = f'<button type="button" class="all">All {len(lines)} rows</button>'
    return (
        f'<div class="wide"><table class="sorts{first}"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>{more}"
    )


def confirmed_table(board: Leaderboard) -> str:
    """What repeats have shown; empty without any."""
    if board.confirmation is None:
        return ""
    heads = "".join(f"<th>{text(title)}</th>" for title in CONFIRMED)
    lines = []
    for row in board.confirmation.rows:
        kind = ' class="best"' if row.number == board.confirmation.recommended else ""
        inner = "".join(f"<td>{text(cell)}</td>" for cell in confirmed_cells(row))
        lines.append(f"<tr{kind}>{inner}</tr>")
    return (
        f'<div class="wide"><table><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def facts_table(facts: Mapping[str, object]) -> str:
    """A line for each fact."""
    lines = (
        f"<tr><th>{name_text(name)}</th><td>{text(fact)}</td></tr>" for name, fact in facts.items()
    )
    return f'<table class="facts">{"".join(lines)}</table>'


_KINDS = {1: "best", None: "unranked"}


def _keys(entry: Row | tuple[str, float], board: Leaderboard) -> list[object]:
    """What each cell of an entry is sorted by; empty where it has nothing."""
    if isinstance(entry, tuple):
        known: dict[str, object] = {board.metric: entry[1], "trial": entry[0]}
    else:
        known = {
            **entry.params,
            **{name: entry.metrics.get(name) for name in board.shown},
            **{name: str(entry.params[name]) for name in _unordered(entry)},
            "rank": entry.rank,
            "trial": entry.number,
            board.metric: entry.value,
            "state": entry.state,
            "peak memory": entry.peak_memory_bytes,
            "trainable": entry.trainable_parameters,
            "minutes": entry.minutes,
            _WORDS: entry.note,
        }
    found = (known.get(title) for title in header(board))
    return ["" if value is None else value for value in found]


def _unordered(row: Row) -> list[str]:
    return [name for name, value in row.params.items() if not isinstance(value, int | float | str)]


def _line(titles: Sequence[str], shown: Sequence[str], keys: Sequence[object], kind: str) -> str:
    inner = "".join(
        f'<td{_class(title)} data-key="{text(key)}">{text(cell)}</td>'
        for title, cell, key in zip(titles, shown, keys, strict=True)
    )
    return f'<tr class="{kind}">{inner}</tr>'


def _class(title: str) -> str:
    return ' class="words"' if title == _WORDS else ""
