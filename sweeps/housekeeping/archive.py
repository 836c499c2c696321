"""A sweep as one file: a tar of a storage that holds nothing else, its study and its runs too.

So an archive also opens with `tar`, and the folder that comes out is a storage like any other.
"""

import contextlib
import json
import shutil
import sqlite3
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna

from peft_jobs import SpecError
from peft_jobs.spec import SOURCES
from peft_jobs.storage import object_store
from peft_jobs.storage.files import name_beside, write_json
from sweeps.file_names import (
    CACHE_FOLDER,
    ID_FILE,
    OUTBOX_FILE,
    RECORD_FILE,
    STUDY_DATABASE,
    TRACKING_DATABASE,
)
from sweeps.housekeeping.remains import Remains
from sweeps.records.layout import SweepFolder, storage_folder
from sweeps.sqlite_urls import sqlite_url
from sweeps.study.database import open_storage, open_to_read


@dataclass(frozen=True)
class Archived:
    """A sweep in one file."""

    file: Path
    bytes: int
    trials: int
    runs: int
    left_out: tuple[str, ...]
    """What belongs to the sweep and is not in the file."""


def archive_sweep(remains: Remains, file: Path) -> Archived:
    """Write a sweep that nobody drives into `file`, a tar; its study and the storage's runs too.

    SpecError if it is being driven, half of it is gone, or `file` is there.
    """
    folder, name = remains.folder, remains.folder.name
    if not remains.has_folder or remains.num_trials is None:
        half = "study" if remains.has_folder else "folder"
        raise SpecError(f"the sweep {name!r} has lost its {half}: there is no whole to archive")
    if file.exists():
        raise SpecError(f"{file} is there already; name another file, or remove it")
    file.absolute().parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=file.absolute().parent, prefix=".archive.") as aside,
        remains.held() as source,
    ):
        root = Path(aside)
        assert source is not None
        target = open_storage(sqlite_url(root / STUDY_DATABASE))
        optuna.copy_study(from_study_name=name, from_storage=source, to_storage=target)
        target.engine.dispose()
        _copy_folder(folder, root / name)
        record = json.loads((root / name / RECORD_FILE).read_text(encoding="utf-8"))
        record["sweep"]["study_url"] = None  # it is beside the folder now
        write_json(root / name / RECORD_FILE, record)
        (root / name / ID_FILE).write_text(remains.key, encoding="utf-8")
        runs = _archive_runs(remains, root)
        whole = name_beside(file.absolute())
        with tarfile.open(whole, "w") as archive:
            for path in sorted(root.iterdir()):
                if path.is_dir() or path.suffix == ".db":  # no log of SQLite's
                    archive.add(path, path.name)
        whole.rename(file)
    return Archived(file, file.stat().st_size, remains.num_trials, runs, _left_out(record["sweep"]))


def restore_sweep(file: Path, storage: str | Path) -> SweepFolder:
    """Put the sweep of an archive into a storage of this machine, beside what is there.

    SpecError if the file is no archive of a sweep, or the storage has a study or a folder of its
    name: nothing is written then.
    """
    root = storage_folder(storage).absolute()
    if object_store.origin(root) is not None:
        raise SpecError("a sweep is restored into a folder; give one with --storage")
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=".restore.") as aside:
        came = Path(aside)
        try:
            with tarfile.open(file) as archive:
                archive.extractall(came, filter="data")
        except (tarfile.TarError, EOFError) as error:
            raise SpecError(f"{file} is no archive that can be read: {error}") from error
        names = [path.parent.name for path in came.glob(f"*/{ID_FILE}")]
        if len(names) != 1 or not (came / STUDY_DATABASE).is_file():
            raise SpecError(f"{file} is no archive of a sweep")
        folder = SweepFolder(root, names[0])
        key = (came / folder.name / ID_FILE).read_text(encoding="utf-8")
        _check_free(folder)
        source = open_to_read(sqlite_url(came / STUDY_DATABASE))
        assert source is not None
        (came / folder.name).rename(folder.path)
        target = open_storage(folder.study_url)
        optuna.copy_study(from_study_name=folder.name, from_storage=source, to_storage=target)
        source.engine.dispose()
        if (came / TRACKING_DATABASE).is_file():
            from sweeps.tracking.recorded_runs import copy_runs  # imports mlflow

            copy_runs(came / TRACKING_DATABASE, root / TRACKING_DATABASE, folder.name, key)
    return folder


def _check_free(folder: SweepFolder) -> None:
    if folder.path.exists():
        raise SpecError(f"{folder.path} is there already: restore into another storage")
    storage = open_to_read(folder.study_url)
    if storage is not None and folder.name in optuna.get_all_study_names(storage):
        raise SpecError(
            f"{folder.study_database} has a study {folder.name!r} already: restore into another "
            "storage"
        )


def _copy_folder(folder: SweepFolder, target: Path) -> None:
    """The sweep's files, of an object store too; not what waits for MLflow, which has its place."""
    url = object_store.origin(folder.path)
    if url is None:
        skipped = shutil.ignore_patterns(f"{OUTBOX_FILE}*", ".*")
        shutil.copytree(folder.path, target, symlinks=True, ignore=skipped)
        return
    for name in folder.files(folder.path):
        if not name.startswith((OUTBOX_FILE, ".")):
            object_store.fetch(f"{url}/{name}", target / name)


def _archive_runs(remains: Remains, root: Path) -> int:
    runs = remains.runs
    if runs is None or runs.sqlite_file != remains.folder.storage / TRACKING_DATABASE:
        return 0
    from sweeps.tracking.recorded_runs import copy_runs  # imports mlflow

    name, key = remains.folder.name, remains.key
    database = root / TRACKING_DATABASE
    count = copy_runs(runs.sqlite_file, database, name, key)
    with contextlib.closing(sqlite3.connect(database)) as written:
        written.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return count


def _left_out(sweep: dict[str, Any]) -> tuple[str, ...]:
    found = [f"the storage's {CACHE_FOLDER}/, which is made again", "the base model"]
    data = sweep["trial"]["data"]
    outside = [
        str(source["path"]) for field in SOURCES if isinstance(source := data.get(field), dict)
    ]
    found += [f"data: {path}" for path in dict.fromkeys(outside) if path != "demo"]
    tracking = sweep["tracking"]
    if tracking["enabled"] and tracking["uri"] is not None:
        found.append(f"the MLflow runs at {tracking['uri']}")
    return tuple(found)
