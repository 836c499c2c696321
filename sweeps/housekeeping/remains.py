"""What there is of a sweep: its study, its folder and its MLflow runs, any of which may be gone."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna

from peft_jobs import SpecError
from peft_jobs.storage import object_store
from sweeps.records.layout import SweepFolder, storage_folder
from sweeps.records.ownership import is_home
from sweeps.records.reader import without_credentials
from sweeps.study.database import open_storage, open_to_read
from sweeps.study.lease import Lease
from sweeps.tracking.destination import Destination


@dataclass(frozen=True)
class Remains:
    """A sweep by name, as far as it is there. Another one's study or runs are none of it."""

    folder: SweepFolder
    key: str
    has_folder: bool
    study_url: str
    num_trials: int | None
    """Of the study; None if there is none."""
    runs: Destination | None
    """Where its MLflow runs are, if it may have any; without credentials."""

    @property
    def num_bytes(self) -> int:
        """Of the folder."""
        return size_of(self.folder)

    @contextmanager
    def held(self) -> Iterator[optuna.storages.RDBStorage | None]:
        """The study's database, while nobody can drive the sweep; SpecError if somebody does."""
        if self.num_trials is None:
            yield None
            return
        storage = open_storage(self.study_url)
        lease = Lease(storage, self.folder.name)
        lease.take()
        try:
            yield storage
        finally:
            lease.release()


def remains_of(storage: str | Path, name: str, study_url: str | None = None) -> Remains:
    """What there is of the sweep `name` of `storage`; SpecError if there is nothing.

    A copy, whose study or runs belong to another storage, has none of them. `study_url` is as
    `open_sweep` takes it.
    """
    folder = SweepFolder(storage_folder(storage).absolute(), name)
    mark, record = folder.read(folder.id), _record(folder)
    has_folder = mark is not None or bool(record)
    own_url = bool(record) and record.get("study_url") is None
    url = folder.study_url if own_url else study_url or record.get("study_url") or folder.study_url
    if "***@" in url:
        raise SpecError(without_credentials(name, url))
    study = _study(url, name, mark)
    at_home = study is None or is_home(folder, study.user_attrs)
    here = at_home or url == folder.study_url
    if not has_folder and (study is None or not here):
        home = {} if study is None else study.user_attrs.get("home", {})
        other = f"; its study is driven from {home['storage']}" if home else ""
        raise SpecError(f"there is no sweep {name!r} in {folder.location}{other}")
    key = str(study.user_attrs["key"]) if study is not None else mark or ""
    tracking: dict[str, Any] = record.get("tracking") or {}
    uri = tracking.get("uri")
    runs = None
    if key and tracking.get("enabled", True) and (at_home or uri is None):
        runs = Destination(uri or folder.tracking_url, tracking.get("experiment", "-"), name, key)
        if runs.sqlite_file is not None and not runs.sqlite_file.is_file():
            runs = None
    if not here:
        study = None
    count = None if study is None else len(study.get_trials(deepcopy=False))
    return Remains(folder, key, has_folder, url, count, runs)


def size_of(folder: SweepFolder) -> int:
    """Bytes of a sweep's folder; of one in an object store, of its objects."""
    url = object_store.origin(folder.path)
    return bytes_below(folder.path) if url is None else object_store.size_below(url)


def bytes_below(path: Path) -> int:
    """Bytes of all files in a folder, or of a file."""
    if path.is_file():
        return path.stat().st_size
    total = 0
    for parent, _, names in os.walk(path):
        for name in names:
            try:
                total += os.lstat(os.path.join(parent, name)).st_size
            except FileNotFoundError:  # removed meanwhile
                continue
    return total


def _record(folder: SweepFolder) -> dict[str, Any]:
    """The sections of `sweep.json`; {} if there is none that can be read."""
    try:
        found = json.loads(folder.read(folder.record) or "{}")
    except ValueError:
        return {}
    sweep: dict[str, Any] = found.get("sweep", {})
    return sweep


def _study(url: str, name: str, mark: str | None) -> optuna.Study | None:
    """The sweep's study; None if there is none, or it is another's."""
    storage = open_to_read(url)
    if storage is None:
        return None
    try:
        study = optuna.load_study(study_name=name, storage=storage)
    except KeyError:
        return None
    key = study.user_attrs.get("key")
    return study if key is not None and mark in (None, key) else None
