"""Where things lie: `<storage>/<sweep>/trials/0007/...`, and the names of a trial."""

import os
import re
import shlex
import shutil
import uuid
from dataclasses import dataclass, field, replace
from pathlib import Path

from peft_jobs.storage import object_store
from peft_jobs.storage.attempt_folder import (
    ATTEMPTS_FOLDER,
    CHECKPOINTS_FOLDER,
    RESULT_FILE,
    TRIAL_FILE,
)
from peft_jobs.storage.files import write_whole
from search_spaces import Params
from sweeps.errors import Unavailable
from sweeps.file_names import (
    CACHE_FOLDER,
    EXPORTS_FOLDER,
    ID_FILE,
    MARKER_FILE,
    OUTBOX_FILE,
    PLANS_FOLDER,
    PLOTS_FOLDER,
    RECORD_FILE,
    SOURCE_FILE,
    STUDY_DATABASE,
    TRACKING_DATABASE,
    TRIALS_FOLDER,
)
from sweeps.records.mirror import Mirror
from sweeps.spec import SweepSpec
from sweeps.sqlite_urls import sqlite_url


def storage_folder(storage: str | Path) -> Path:
    """The folder of a storage on this machine: itself, or where a store's is staged."""
    text = str(storage)
    return object_store.staged(text) if object_store.is_url(text) else Path(storage)


@dataclass(frozen=True)
class SweepFolder:
    """The paths of one sweep in its storage.

    Where that is an object store they are staged paths of this machine: written here and put there
    (`keep`), and read from there.
    """

    storage: Path
    name: str
    mirror: Mirror | None = field(default=None, compare=False, repr=False)
    """A driver's, if the storage is an object store."""

    @classmethod
    def of(cls, spec: SweepSpec) -> "SweepFolder":
        return cls(storage_folder(spec.storage), spec.name)

    def with_mirror(self, mirror: Mirror | None) -> "SweepFolder":
        return replace(self, mirror=mirror)

    @property
    def location(self) -> str:
        """The storage as a person names it: an absolute path or a URL."""
        return self.location_of(self.storage.absolute())

    @property
    def in_store(self) -> bool:
        return object_store.origin(self.storage) is not None

    @property
    def option(self) -> str:
        """What a command needs to find this storage from here, quoted; empty for `runs`."""
        runs = Path("runs").absolute()
        return "" if self.storage.absolute() == runs else f" --storage {shlex.quote(self.location)}"

    def location_of(self, path: Path) -> str:
        """Where a path of this storage is found from any machine."""
        return object_store.origin(path) or str(path)

    def path_of(self, location: str) -> Path:
        """The path of a location of this storage: the other way round."""
        if not self.in_store:
            return Path(location)
        return self.storage / location.removeprefix(f"{self.location}/")

    def keep(self, *paths: Path) -> None:
        """Put what was written into these paths to the store, soon; does not wait."""
        if self.mirror is not None:
            for path in paths:
                self.mirror.put(path)

    def write_shared_marker(self) -> tuple[str, str]:
        """(location, text) of a file that is in this storage, and nowhere else, from now on.

        Raises Unavailable if the storage does not take it.
        """
        marker, text = self.path / MARKER_FILE, uuid.uuid4().hex
        self.write_now(marker, text)
        return self.location_of(marker), text

    def write_now(self, path: Path, text: str) -> None:
        """Write a small file that is in the storage when this returns; else Unavailable."""
        location = self.location_of(path)
        try:
            if self.in_store:
                object_store.put_text(text, location)
            else:
                write_whole(path, text)
        except OSError as error:
            raise Unavailable(f"{location} cannot be written: {error}") from error

    def remove(self, path: Path) -> None:
        """Delete a file or a folder of the sweep, if it is there; does not wait for a store.

        ValueError for a path that is not below the sweep's folder.
        """
        if not Path(os.path.normpath(path)).is_relative_to(self.path):
            raise ValueError(f"{path} is not in the folder of the sweep {self.name!r}")
        shutil.rmtree(path, ignore_errors=True)
        if self.mirror is not None:
            self.mirror.remove(self.location_of(path))

    def remove_checkpoints(self, number: int) -> None:
        """Delete all checkpoints of a trial."""
        attempts = self.trial(number) / ATTEMPTS_FOLDER
        for path in attempts.glob(f"*/{CHECKPOINTS_FOLDER}"):
            shutil.rmtree(path, ignore_errors=True)  # a host cut off may still be writing
        if self.mirror is not None:
            self.mirror.remove_below(self.location_of(attempts), CHECKPOINTS_FOLDER)

    def read(self, path: Path) -> str | None:
        """The text of a file of the storage; None if there is none."""
        url = object_store.origin(path)
        if url is not None:
            return object_store.read(url)
        return path.read_text(encoding="utf-8") if path.is_file() else None

    def files(self, below: Path) -> list[str]:
        """The files at any depth in a folder of the storage, by relative path."""
        url = object_store.origin(below)
        if url is not None:
            return object_store.names(url)
        return sorted(p.relative_to(below).as_posix() for p in below.rglob("*") if p.is_file())

    @property
    def path(self) -> Path:
        return self.storage / self.name

    @property
    def outbox(self) -> Path:
        return self.path / OUTBOX_FILE

    @property
    def exports(self) -> Path:
        return self.path / EXPORTS_FOLDER

    @property
    def id(self) -> Path:
        """Names the sweep whose folder this is: its study carries the same `key`."""
        return self.path / ID_FILE

    @property
    def source(self) -> Path:
        """The sweep file as it ran."""
        return self.path / SOURCE_FILE

    @property
    def record(self) -> Path:
        """The resolved sweep; there once it was launched."""
        return self.path / RECORD_FILE

    @property
    def plots(self) -> Path:
        return self.path / PLOTS_FOLDER

    @property
    def trials(self) -> Path:
        return self.path / TRIALS_FOLDER

    @property
    def study_database(self) -> Path:
        """The study's, unless the sweep names another one."""
        return self.storage / STUDY_DATABASE

    @property
    def study_url(self) -> str:
        return sqlite_url(self.study_database)

    @property
    def tracking_url(self) -> str:
        return sqlite_url(self.storage / TRACKING_DATABASE)

    @property
    def cache(self) -> Path:
        """Tokenized data, shared by all sweeps of the storage."""
        return self.storage / CACHE_FOLDER

    @property
    def plan(self) -> Path:
        """What `plan` told of the sweep, perhaps before there was one."""
        return self.cache / PLANS_FOLDER / f"{self.name}.json"

    def trial(self, number: int) -> Path:
        return self.trials / f"{number:04d}"

    def trial_file(self, number: int) -> Path:
        """A trial's specification."""
        return self.trial(number) / TRIAL_FILE

    def attempt(self, number: int, attempt: int) -> Path:
        return self.trial(number) / ATTEMPTS_FOLDER / str(attempt)

    def result(self, number: int) -> Path:
        """There if and only if the trial has ended."""
        return self.trial(number) / RESULT_FILE

    def results(self) -> set[int]:
        """The trials that have a `result.json`."""
        trials = self.trials
        found = (
            [trials / name for name in self.files(trials)] if self.in_store else trials.glob("*/*")
        )
        return {
            int(path.parent.name)
            for path in found
            if path.name == RESULT_FILE
            and path.parent.parent == trials
            and path.parent.name.isdigit()
        }

    def checkpoints(self, number: int) -> list[Path]:
        """All checkpoints of a trial, the newest last: by step, then by attempt."""
        found = self.trial(number).glob(f"{ATTEMPTS_FOLDER}/*/{CHECKPOINTS_FOLDER}/step-*")
        return sorted(found, key=lambda path: (path.name, int(path.parts[-3])))


def run_name(number: int, params: Params) -> str:
    """`trial-0007-r16-a32-attention`: what tells trials apart in a list, in MLflow above all."""
    parts = [f"trial-{number:04d}"]
    for name, letter in (("adapter.r", "r"), ("adapter.lora_alpha", "a")):
        if name in params:
            parts.append(f"{letter}{float(params[name]):g}")  # type: ignore[arg-type]
    targets = params.get("adapter.target_modules")
    if targets is not None:
        text = targets if isinstance(targets, str) else "+".join(map(str, targets))  # type: ignore[arg-type]
        parts.append(re.sub(r"[^A-Za-z0-9+_.-]+", "_", text)[:40])
    return "-".join(parts)
