"""`delete` and `gc`: sweeps, and what no sweep needs, removed for good."""

import shlex
import sys
from dataclasses import asdict
from pathlib import Path

import typer

from peft_jobs import SpecError
from sweeps.cli.screen import err, print_json, say, size
from sweeps.housekeeping.deletion import delete_sweep
from sweeps.housekeeping.leftovers import leftovers, lost_studies, remove_leftovers
from sweeps.housekeeping.remains import Remains, remains_of


def delete(
    storage: Path,
    name: str,
    study_url: str | None,
    keep_best: bool,
    keep_runs: bool,
    yes: bool,
    json: bool,
) -> None:
    """Delete a sweep, after asking; SpecError where nobody can be asked and not `yes`."""
    remains = remains_of(storage, name, study_url)
    if not yes:
        if not sys.stdin.isatty():
            raise SpecError(f"this deletes {_told(remains)}: say --yes")
        if not typer.confirm(f"Delete {_told(remains)}?", err=True):
            raise typer.Abort
    with err.status(f"Deleting {name} ..."):
        deleted = delete_sweep(remains, keep_best, keep_runs)
    if json:
        print_json({"sweep": name, **asdict(deleted)})
        return
    say(
        f"Deleted {name}: {deleted.trials} trials, {deleted.runs} MLflow runs, "
        f"{size(deleted.bytes)}."
    )
    if remains.num_trials is None:
        say("It had no study here: that was removed before, or belongs to another storage.")
    if deleted.kept is not None:
        say(f"The winner's adapter is in {deleted.kept}")


def collect(storage: Path, study_url: str | None, dry_run: bool, json: bool) -> None:
    """Remove what no sweep of the storage refers to, or say what that is."""
    found = leftovers(storage, study_url)
    if not dry_run:
        remove_leftovers(found)
    lost = lost_studies(storage)
    if json:
        print_json(
            {"removed": not dry_run, "found": [*map(asdict, found)], "lost": [*map(asdict, lost)]}
        )
        return
    for leftover in found:
        say(f"{size(leftover.bytes):>9}  {leftover.path}: {leftover.why}")
    total = size(sum(leftover.bytes for leftover in found))
    say(f"{'Would remove' if dry_run else 'Removed'} {total}." if found else "Nothing to remove.")
    for study in lost:
        again = shlex.join(["peft-sweep", "delete", study.name, "--storage", str(storage)])
        say(f"{study.name} has {study.trials} trials and no folder: `{again}` removes its study.")


def _told(remains: Remains) -> str:
    folder = remains.folder
    parts = [] if remains.num_trials is None else [f"{remains.num_trials} trials"]
    if remains.has_folder:
        parts.append(f"{folder.location_of(folder.path)} ({size(remains.num_bytes)})")
    if remains.runs is not None:
        parts.append(f"its runs in {remains.runs}")
    return f"the sweep {folder.name!r}: {', '.join(parts)}"
