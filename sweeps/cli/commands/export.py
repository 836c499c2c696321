"""`export`: write a trial's adapter, and print what was measured on the written files."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from peft_jobs import SpecError
from sweeps.cli.screen import err, out, print_json

if TYPE_CHECKING:
    from sweeps.exporters.export import Exported
    from sweeps.results.recorded_sweep import RecordedSweep


@dataclass(frozen=True)
class Push:
    """Where an export is to go."""

    repo_id: str | None = None
    private: bool = False
    dry_run: bool = False
    register: str | None = None
    """A registered model of MLflow's."""

    def check(self, top: int | None) -> None:
        """SpecError for options that do not go together."""
        if self.repo_id is None and (self.private or self.dry_run):
            raise SpecError("--private and --dry-run go with --push-to-hub")
        if self.dry_run and self.register:
            raise SpecError("--dry-run is of --push-to-hub: give it without --register")
        if (self.repo_id or self.register) and top is not None:
            raise SpecError("--push-to-hub and --register take one trial: give --trial, not --top")


def export(
    sweep: "RecordedSweep",
    number: int | None,
    top: int | None,
    path: Path | None,
    to: Sequence[str],
    test: bool,
    push: Push,
    json: bool,
) -> None:
    """Export, print, and push; SpecError for a trial, form or repository that cannot be had."""
    from sweeps.driver.results_told import tell_again
    from sweeps.exporters.export import write_export, write_top

    if top is not None and number is not None:
        raise SpecError("give either --trial or --top")
    push.check(top)
    with err.status("Writing the adapter, and scoring it on a fresh base ..."):
        if top is None:
            found = [write_export(sweep, number, path, to, test)]
        else:
            found = write_top(sweep, top, path, to, test)
    with err.status("Telling the sweep's page, and MLflow, what is known now ..."):
        tell_again(sweep)
    sent = _pushed(found[0].path, push) | _registered(sweep, found[0], push)
    if json:
        print_json(asdict(found[0]) | sent if top is None else [asdict(one) for one in found])
        return
    for exported in found:
        tell_export(exported, sweep.name)
    _show_sent(sent)


def _pushed(folder: Path, push: Push) -> dict[str, Any]:
    """What was sent to the Hub, or would be; {} if nothing was to be."""
    from sweeps.exporters.hub import parcel, push_to_hub

    if push.repo_id is None:
        return {}
    known = parcel(folder)
    told = {"repository": push.repo_id, "files": list(known.files), "bytes": known.num_bytes}
    told |= {"kept": known.kept, "warnings": list(known.warnings), "commit": None}
    if not push.dry_run:
        with err.status(f"Sending it to {push.repo_id} ..."):
            told["commit"] = push_to_hub(folder, push.repo_id, push.private)
    return {"hub": told}


def _registered(sweep: "RecordedSweep", exported: "Exported", push: Push) -> dict[str, Any]:
    """What MLflow's registry has of it now; {} if nothing was to be."""
    if push.register is None:
        return {}
    assert exported.number is not None
    from sweeps.exporters.registration import register_export

    with err.status(f"Registering it as {push.register} ..."):
        made = register_export(sweep, exported.number, exported.path, push.register)
    return {"registered": asdict(made)}


def _show_sent(sent: Mapping[str, Any]) -> None:
    if (made := sent.get("registered")) is not None:
        name = escape(f"models:/{made['model']}@{made['alias']}")
        out.print(f"In MLflow it is [bold]{name}[/], version {made['version']}")
    if "hub" not in sent:
        return
    told = sent["hub"]
    did = "In" if told["commit"] else "Would go to"
    out.print(f"{did} [bold]{escape(told['repository'])}[/], {told['bytes']:,} bytes:")
    for name in told["files"]:
        out.print(f"  {escape(name)}")
    for name, reason in told["kept"].items():
        out.print(f"  [dim]not {escape(name)}: {escape(reason)}[/]")
    for line in told["warnings"]:
        out.print(f"  [yellow]mind:[/] {escape(line)}")
    if told["commit"]:
        out.print(told["commit"])


def tell_export(exported: "Exported", name: str) -> None:
    """Where the trial of the sweep `name` lies, and what was measured on it."""
    path = escape(str(exported.path))
    out.print(f"Trial {exported.number:04d} of {name} is in [bold]{path}[/]")
    out.print(scores(exported))
    tell_forms(exported)


def tell_forms(exported: "Exported") -> None:
    """What was written beside the adapter, and what is different there."""
    if exported.merged_path is not None:
        out.print(f"The merged model is in [bold]{escape(str(exported.merged_path))}[/]")
    for form, lines in exported.differences.items():
        folder = escape(str(exported.path / form))
        out.print(f"[bold]{folder}[/]" + (", where is different:" if lines else ""))
        for line in lines:
            out.print(Padding(f"- {escape(line)}", (0, 0, 0, 2), expand=False))


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
