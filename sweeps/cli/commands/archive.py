"""`archive` and `restore`: a sweep as one file, and back."""

import shlex
from dataclasses import asdict
from pathlib import Path

from sweeps.cli.screen import err, out, print_json, say, size
from sweeps.housekeeping.archive import archive_sweep, restore_sweep
from sweeps.housekeeping.remains import remains_of


def archive(storage: Path, name: str, study_url: str | None, path: Path | None, json: bool) -> None:
    """Write the archive, and say what it holds and what not."""
    remains = remains_of(storage, name, study_url)
    with err.status(f"Archiving {name} ..."):
        made = archive_sweep(remains, path or Path(f"{name}.tar"))
    if json:
        print_json({"sweep": name, **asdict(made)})
        return
    out.print(str(made.file), markup=False, soft_wrap=True)
    say(f"It holds {made.trials} trials and {made.runs} MLflow runs, {size(made.bytes)}.")
    say(f"Not in it: {'; '.join(made.left_out)}.")
    say(f"`{shlex.join(['peft-sweep', 'restore', str(made.file)])}` opens it, also elsewhere.")


def restore(file: Path, storage: Path) -> None:
    """Restore a sweep into the storage."""
    with err.status(f"Restoring {file} ..."):
        folder = restore_sweep(file, storage)
    say(f"Restored {folder.name} into {folder.location}. Next:")
    say(f"  peft-sweep leaderboard {folder.name}{folder.option}")
