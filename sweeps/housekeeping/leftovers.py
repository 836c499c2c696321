"""What no sweep of a storage refers to: what cut-off processes have left, caches, empty starts.

Nothing that a trial has made is among it: a sweep is deleted by name.
"""

import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import optuna

from peft_jobs.storage import object_store
from sweeps.file_names import ARTIFACTS_FOLDER, CACHE_FOLDER
from sweeps.housekeeping.remains import bytes_below
from sweeps.records.layout import SweepFolder, storage_folder
from sweeps.records.reader import recorded_names
from sweeps.results.recorded_sweep import RecordedSweep, open_sweeps
from sweeps.study.database import open_to_read

QUIET_SECONDS = 24 * 3600.0
"""What was written to within a day may be somebody's work."""
_ASIDE = re.compile(r"\..+\.[0-9a-z_]{8}|\.(archive|restore)\..+")
"""Names of what is written aside, to be renamed when it is whole."""


@dataclass(frozen=True)
class Leftover:
    """A file or folder that can go."""

    path: Path
    why: str
    bytes: int


@dataclass(frozen=True)
class Lost:
    """A study in the storage's database whose sweep has no folder: `delete` removes it."""

    name: str
    trials: int


def leftovers(storage: str | Path, study_url: str | None = None) -> list[Leftover]:
    """What can go from a storage, of an object store from what is staged of it on this machine.

    Raises SpecError or Unavailable if the storage cannot be read.
    """
    root = storage_folder(storage).absolute()
    found = _staged(root) if object_store.origin(root) is not None else _local(root, study_url)
    return [Leftover(path, why, bytes_below(path)) for path, why in found]


def remove_leftovers(found: list[Leftover]) -> None:
    """Delete them. Raises OSError."""
    for leftover in found:
        if leftover.path.is_dir() and not leftover.path.is_symlink():
            shutil.rmtree(leftover.path)
        else:
            leftover.path.unlink(missing_ok=True)


def lost_studies(storage: str | Path) -> list[Lost]:
    """The sweeps in the storage's own database whose folders are gone, by name."""
    folder = SweepFolder(storage_folder(storage).absolute(), "-")
    database = None if folder.in_store else open_to_read(folder.study_url)
    if database is None:
        return []
    studies = optuna.get_all_study_summaries(database, include_best_trial=False)
    return [
        Lost(study.study_name, study.n_trials)
        for study in sorted(studies, key=lambda study: study.study_name)
        if "key" in study.user_attrs and not (folder.storage / study.study_name).exists()
    ]


def _local(root: Path, study_url: str | None) -> Iterator[tuple[Path, str]]:
    cache = root / CACHE_FOLDER
    for parent in (root, cache, *cache.glob("*"), *root.glob("*/"), *root.glob("*/exports/")):
        if parent.name == ARTIFACTS_FOLDER or not parent.is_dir():
            continue
        for path in parent.iterdir():
            if _ASIDE.fullmatch(path.name) and _is_quiet(path):
                yield path, "was not finished"
    if cache.is_dir() and _is_quiet(cache) and not _has_work(root, study_url):
        yield cache, "no sweep goes on; it is made again where it is needed"
    names = set(recorded_names(root))
    for folder in (SweepFolder(root, path.name) for path in root.glob("*/")):
        begun = folder.id.is_file() and folder.name not in names and not folder.results()
        if begun and _is_quiet(folder.path):
            yield folder.path, "a sweep that never began"


def _staged(root: Path) -> Iterator[tuple[Path, str]]:
    """Of an object store: what this machine keeps of sweeps that the store has no more."""
    url = str(object_store.origin(root))
    names = set(recorded_names(root))
    for staging in (root, object_store.local_folder(url)):
        if staging.is_dir():
            for path in sorted(staging.iterdir()):
                if path.name not in names and _is_quiet(path):
                    yield path, f"{url} has no such sweep"


def _has_work(root: Path, study_url: str | None) -> bool:
    """Whether some sweep of a storage may still train: it is driven, unfinished, or unreadable."""
    return any(
        not isinstance(sweep, RecordedSweep) or _goes_on(sweep)
        for sweep in open_sweeps(root, study_url)
    )


def _goes_on(sweep: RecordedSweep) -> bool:
    holder = sweep.study.holder
    if holder is not None and not holder.is_gone:
        return True
    states = [trial.state for trial in sweep.study.launched()]
    ended = sum(state.is_finished() for state in states)
    return ended < len(states) or ended < sweep.spec.budget.n_trials


def _is_quiet(path: Path) -> bool:
    newest = max(p.lstat().st_mtime for p in (path, *path.rglob("*")))
    return time.time() - newest > QUIET_SECONDS
