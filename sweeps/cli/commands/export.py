"""`export`: write a trial's adapter, and print what was measured on the written files."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from sweeps.cli.screen import err, out, print_json
from sweeps.records.reader import read_record

if TYPE_CHECKING:
    from sweeps.results.export import Exported


def export(
    storage: Path,
    name: str,
    number: int | None,
    path: Path | None,
    merge: bool,
    test: bool,
    study_url: str | None,
    json: bool,
) -> None:
    """Export and print; SpecError for an unknown sweep, or a trial without an adapter."""
    read_record(storage, name)
    from sweeps.results.export import export_trial

    with err.status("Writing the adapter, and scoring it on a fresh base ..."):
        exported = export_trial(storage, name, number, path, merge, test, study_url)
    if json:
        print_json(asdict(exported))
        return
    out.print(f"Trial {exported.number:04d} of {name} is in [bold]{exported.path}[/]")
    out.print(scores(exported))
    if exported.merged_path is not None:
        out.print(f"The merged model is in [bold]{exported.merged_path}[/]")


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
