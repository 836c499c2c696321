"""Where words go: results to stdout, everything else (progress, notices, errors) to stderr."""

import json
import logging
import os
from collections.abc import Iterable, Mapping
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sweeps.results.words import shown

out = Console(highlight=False, emoji=False)
err = Console(stderr=True, highlight=False, emoji=False)

_PIPE_WIDTH = 240
for console in (out, err):
    if not console.is_terminal:  # a table in a file or a pipe is not broken to fit a window
        console.width = _PIPE_WIDTH

_NOISE = ("alembic", "optuna", "ray", "mlflow", "httpx", "urllib3")


def set_up_logging() -> None:
    """Warnings to stderr, above the live display; libraries that chatter say errors only."""
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")  # one per data set and split
    from rich.logging import RichHandler

    handler = RichHandler(console=err, show_time=False, show_path=False)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], format="%(message)s", force=True)
    for name in _NOISE:
        logging.getLogger(name).setLevel(logging.ERROR)


def print_json(value: Any) -> None:
    """JSON on stdout, as it is: no colours, no wrapping."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def say(text: str, style: str | None = None) -> None:
    """A line to stderr, unbroken."""
    err.print(text, style=style, markup=False, soft_wrap=True)


def pairs(items: Mapping[str, str]) -> Table:
    """Names and values in two columns."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True, min_width=8)
    table.add_column(overflow="fold")
    for name, value in items.items():
        table.add_row(name, Text(value))
    return table


def short_names(names: Iterable[str]) -> dict[str, str]:
    """`adapter.r` -> `r`, for every name whose last part no other name shares."""
    names = list(names)
    leaves = [name.rpartition(".")[2] for name in names]
    return {
        name: leaf if leaves.count(leaf) == 1 else name
        for name, leaf in zip(names, leaves, strict=True)
    }


def short_params(params: Mapping[str, object]) -> dict[str, str]:
    """Parameters with short names and readable values."""
    names = short_names(params)
    return {names[name]: shown(value) for name, value in params.items()}


def clock(seconds: float) -> str:
    """`0:42`, `12:05`, `1:02:03`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def between(low: float, high: float) -> str:
    """`12:05 to 19:10`, or `about 12:05` where both say the same."""
    return (
        f"about {clock(high)}"
        if high - low < max(5, 0.1 * low)
        else f"{clock(low)} to {clock(high)}"
    )


def size(count: float) -> str:
    """Bytes in KiB, MiB or GiB."""
    if count < 2**20:
        return f"{count / 2**10:.0f} KiB"
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
