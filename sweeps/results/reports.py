"""The leaderboard as files: JSON, CSV, HTML, and the Markdown note of the MLflow parent run."""

import csv
import html
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from peft_jobs.storage.files import write_json, write_whole
from sweeps.confirmation.confirmed import Confirmed
from sweeps.file_names import (
    LEADERBOARD_CSV,
    LEADERBOARD_HTML,
    LEADERBOARD_JSON,
    PLOTS_FOLDER,
    RECORD_FILE,
    REPORT_FILE,
    SOURCE_FILE,
)
from sweeps.records.layout import SweepFolder
from sweeps.results.leaderboard import SHORT, Leaderboard, Row
from sweeps.results.states import word
from sweeps.results.verdict import Verdict
from sweeps.results.words import shown, size
from sweeps.spec.metrics import numbers
from sweeps.tracking import Artifact

_STYLE = """body{font:15px system-ui,sans-serif;margin:2em}table{border-collapse:collapse}
th,td{padding:.35em .8em;border-bottom:1px solid #ddd;text-align:right}th{background:#f4f4f4}
tr.best{font-weight:600;background:#eef8ee}tr.unranked{color:#777}
tr.reference{font-style:italic;background:#f8f4e8}"""


def header(board: Leaderboard) -> list[str]:
    """Column names: fixed ones, those that were asked for, then the parameters that vary."""
    fixed = ["rank", "trial", board.metric, "state", "peak memory", "trainable", "minutes"]
    return [*fixed, *board.shown, *board.varying, *(["note"] if board.has_notes else [])]


def cells(row: Row | tuple[str, float], board: Leaderboard) -> list[str]:
    """An entry as a person reads it; memory in MiB or GiB."""
    if isinstance(row, tuple):
        words, value = row
        line = {"trial": SHORT[words], board.metric: f"{value:.4f}"}
        return [line.get(name, "") for name in header(board)]
    kind = "" if row.kind is None else f" ({row.kind.replace('_', ' ')})"
    fixed = [
        "" if row.rank is None else str(row.rank),
        f"{row.number:04d}",
        "" if row.value is None else f"{row.value:.4f}",
        word(row.state) + kind,
        size(row.peak_memory_bytes),
        "" if row.trainable_parameters is None else f"{row.trainable_parameters:,}",
        f"{row.minutes:.2f}",
    ]
    known = numbers(row)
    fixed += [_number(name, known.get(name)) for name in board.shown]
    fixed += [shown(row.params[n]) if n in row.params else "" for n in board.varying]
    return fixed + ([row.note] if board.has_notes else [])


CONFIRMED = (
    *("group", "trial", "expected", "95 %", "sd", "seeds", "recorded"),
    *("behind", "95 %", "P(best)"),
)
"""Column names of what repeats have shown."""


def confirmed_cells(row: Confirmed) -> list[str]:
    """A configuration that was trained again, as a person reads it."""
    return [
        str(row.group),
        f"{row.number:04d}",
        f"{row.expected.value:.4f}",
        f"{row.expected.low:.4f} to {row.expected.high:.4f}",
        f"{row.sd:.4f}",
        str(row.num_seeds),
        f"{row.recorded:.4f}",
        f"{row.behind.value:.4f}",
        f"{row.behind.low:.4f} to {row.behind.high:.4f}",
        f"{row.probability_best:.2f}",
    ]


def markdown(board: Leaderboard, said: Sequence[str], limit: int = 20) -> str:
    """The first rows as a Markdown table, below the verdict's sentences `said`."""
    lines = [f"**Sweep `{board.sweep}`**", "", *(f"* {sentence}" for sentence in said), ""]
    names = header(board)
    lines += ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    entries = replace(board, rows=board.rows[:limit]).entries
    lines += ["| " + " | ".join(cells(entry, board)) + " |" for entry in entries]
    if len(board.rows) > limit:
        lines.append(f"\n{len(board.rows) - limit} more in `{LEADERBOARD_CSV}`.")
    if (found := board.confirmation) is not None:
        lines += ["", "Trained again under fresh seeds:", ""]
        lines += ["| " + " | ".join(CONFIRMED) + " |", "|" + "---|" * len(CONFIRMED)]
        lines += ["| " + " | ".join(confirmed_cells(row)) + " |" for row in found.rows]
    return "\n".join(lines)


def write_reports(board: Leaderboard, verdict: Verdict, folder: SweepFolder) -> None:
    """`leaderboard.{json,csv,html}` in the sweep's folder, each whole."""
    write_json(folder.path / LEADERBOARD_JSON, to_json(board, verdict))
    write_whole(folder.path / LEADERBOARD_CSV, to_csv(board))
    write_whole(folder.path / LEADERBOARD_HTML, to_html(board, verdict.sentences()))
    folder.keep(*(folder.path / f"leaderboard.{kind}" for kind in ("json", "csv", "html")))


def to_json(board: Leaderboard, verdict: Verdict) -> dict[str, Any]:
    """The board as plain JSON values, with its verdict."""
    return {**board.to_json(), "verdict": verdict.to_json()}


def to_csv(board: Leaderboard) -> str:
    """All rows with plain numbers: bytes, minutes, every parameter and metric; and the references,
    which have no number of a trial.

    Lists, booleans and the null that a parameter may be are as JSON writes them; what a row does
    not have is empty.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(board.columns)
    for row in board.entries:
        if isinstance(row, tuple):
            line = {"note": row[0], "value": row[1]}
            writer.writerow([line.get(name) for name in board.columns])
            continue
        known = row.known
        writer.writerow(
            [
                json.dumps(known[name])
                if name in row.params and not isinstance(known[name], str)
                else known.get(name)
                for name in board.columns
            ]
        )
    return text.getvalue()


def to_html(board: Leaderboard, said: Sequence[str]) -> str:
    """A page that stands alone, with the verdict's sentences `said` above the table."""

    def line(tag: str, values: Sequence[str], kind: str = "") -> str:
        inner = "".join(f"<{tag}>{html.escape(value)}</{tag}>" for value in values)
        return f'<tr class="{kind}">{inner}</tr>'

    title = html.escape(f"Sweep {board.sweep}")
    kinds = {1: "best", None: "unranked"}
    rows = [
        line("td", cells(e, board), "reference" if isinstance(e, tuple) else kinds.get(e.rank, ""))
        for e in board.entries
    ]
    return "\n".join(
        [
            f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title>",
            f"<style>{_STYLE}</style><h1>{title}</h1>",
            *(f"<p>{html.escape(sentence)}</p>" for sentence in said),
            f"<table>{line('th', header(board))}",
            *rows,
            "</table>",
            *_confirmed_html(board),
            "</html>\n",
        ]
    )


def _confirmed_html(board: Leaderboard) -> list[str]:
    if (found := board.confirmation) is None:
        return []
    table = [CONFIRMED, *(confirmed_cells(row) for row in found.rows)]
    tags = ["th", *("td" for _ in found.rows)]
    lines = [
        "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"
        for tag, cells in zip(tags, table, strict=True)
    ]
    return [
        "<h2>Trained again under fresh seeds</h2>",
        "<table>",
        *lines,
        "</table>",
    ]


def report_artifacts(folder: SweepFolder, best: Row | None) -> list[Artifact]:
    """What the parent run keeps: spec, report, leaderboard, plots, the best adapter with its
    trial."""
    boards = (LEADERBOARD_JSON, LEADERBOARD_CSV, LEADERBOARD_HTML)
    names = (SOURCE_FILE, RECORD_FILE, REPORT_FILE, *boards)
    artifacts = [Artifact(folder.path / name) for name in names]
    artifacts.append(Artifact(folder.plots, PLOTS_FOLDER))
    if best is not None:
        artifacts.append(Artifact(folder.trial_file(best.number), "best"))
        if best.adapter is not None:
            artifacts.append(Artifact(folder.path / best.adapter, "best/adapter"))
    fetched = [a for a in artifacts if folder.in_store and a.artifact_path.startswith("best")]
    return [a for a in artifacts if a.path.exists() or a in fetched]


def _number(name: str, value: float | None) -> str:
    if name.startswith("memory/"):
        return size(None if value is None else int(value))
    return "" if value is None else f"{value:.4f}"
