"""`export`: write a trial's adapter, and print what was measured on the written files."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from peft_jobs import SpecError
from sweeps.cli.screen import err, out, print_json

if TYPE_CHECKING:
    from sweeps.exporters.export import Exported
    from sweeps.results.recorded_sweep import RecordedSweep


def export(
    sweep: "RecordedSweep",
    number: int | None,
    top: int | None,
    path: Path | None,
    to: Sequence[str],
    test: bool,
    json: bool,
) -> None:
    """Export and print; SpecError for an unknown trial or form, or a trial without an adapter."""
    from sweeps.exporters.export import write_export, write_top

    if top is not None and number is not None:
        raise SpecError("give either --trial or --top")
    with err.status("Writing the adapter, and scoring it on a fresh base ..."):
        if top is None:
            found = [write_export(sweep, number, path, to, test)]
        else:
            found = write_top(sweep, top, path, to, test)
    if json:
        print_json(asdict(found[0]) if top is None else [asdict(one) for one in found])
        return
    for exported in found:
        tell_export(exported, sweep.name)


def tell_export(exported: "Exported", name: str) -> None:
    """Where the trial of the sweep `name` lies, and what was measured on it."""
    path = escape(str(exported.path))
    out.print(f"Trial {exported.number:04d} of {name} is in [bold]{path}[/]")
    out.print(scores(exported))
    if exported.merged_path is not None:
        out.print(f"The merged model is in [bold]{escape(str(exported.merged_path))}[/]")
    for form, lines in exported.differences.items():
        folder = escape(str(exported.path / form))
        out.print(f"[bold]{folder}[/]" + (", where is different:" if lines else ""))
        for line in lines:
            out.print(Padding(f"- {escape(line)}", (0, 0, 0, 2)))


def scores(exported: "Exported") -> Table:
    """One row per metric, one column per place where it was measured."""
    columns = {
        "recorded": exported.recorded,
        "re-scored": exported.validation,
        "merged": exported.merged,
        "test": _by_leaf(exported.test),
    }
    measured = {title: metrics for title, metrics in columns.items() if metrics}
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("metric", style="dim")
    for title in measured:
        table.add_column(title, justify="right")
    for name in exported.recorded or exported.validation:
        leaf = name.rpartition("/")[2]
        values = [m.get(leaf if t == "test" else name) for t, m in measured.items()]
        table.add_row(name, *("" if value is None else f"{value:.6g}" for value in values))
    return table


def _by_leaf(metrics: dict[str, float] | None) -> dict[str, float]:
    return {name.rpartition("/")[2]: value for name, value in (metrics or {}).items()}
