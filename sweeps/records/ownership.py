"""Whether a study and a folder of a sweep's name are the sweep's own, seen before a write.

A sweep has two halves, its study and its folder. Both carry its id: the study as the attribute
`key`, the folder in the file `sweep.id`. The study also knows the storage from which it was driven
last (`home`). What lacks the mark, or carries another one, is somebody else's. Sweeps of version
0.1 have the study's half only; they get the other when they are taken up.
"""

import contextlib
import platform
import shlex
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from peft_jobs import SpecError
from peft_jobs.storage import object_store
from sweeps.file_names import INPUTS_FOLDER, MARKER_FILE
from sweeps.records.layout import SweepFolder, storage_folder
from sweeps.redact import redact
from sweeps.spec import SweepSpec
from sweeps.study.database import open_to_read

_BEFORE_THE_STUDY = (MARKER_FILE, INPUTS_FOLDER)
"""What a launch of version 0.1 that came to nothing may have left in its folder."""


def own_id(spec: SweepSpec, folder: SweepFolder, moved: bool = False) -> str:
    """The id of the sweep that `spec` names; a new one if neither study nor folder is there.

    Raises SpecError, and has changed nothing, if the study or the folder of that name is not the
    sweep's: another's, a copy, one that was removed. `moved` says that the storage, which was
    elsewhere, is here now.
    """
    url = spec.study_url or folder.study_url
    storage, mark = open_to_read(url), folder.read(folder.id)
    study = None
    if storage is not None:
        with contextlib.suppress(KeyError):
            study = optuna.load_study(study_name=spec.name, storage=storage)
    if study is None:
        _check_alone(spec, folder, mark, url)
        return mark or f"{spec.name}-{uuid.uuid4().hex[:12]}"
    both = _Both(spec, folder, study, mark, redact(url))
    if both.died_unmarked:
        return str(mark)
    both.check_study()
    both.check_folder(moved)
    return both.key


def home_of(folder: SweepFolder) -> dict[str, str]:
    """What a study records of the storage from which it is driven."""
    return {"storage": _resolved(folder.location), "machine": platform.node()}


def is_home(folder: SweepFolder, attrs: Mapping[str, Any]) -> bool:
    """Whether a study with the attributes `attrs` was driven from this storage last, if known."""
    before = attrs.get("home", {}).get("storage")
    return before in (None, _resolved(folder.location))


def check_own(folder: SweepFolder, attrs: Mapping[str, Any]) -> None:
    """SpecError if a study with the attributes `attrs` is not that of the sweep in the folder."""
    key, mark = attrs.get("key"), folder.read(folder.id)
    if key is None or mark not in (None, key):
        raise SpecError(
            f"the study {folder.name!r} ({key or 'of no sweep'}) is not that of the sweep in "
            f"{folder.location_of(folder.path)} ({mark or 'of version 0.1'})"
        )


def _check_alone(spec: SweepSpec, folder: SweepFolder, mark: str | None, url: str) -> None:
    """SpecError if the folder, to which no study belongs, holds a sweep's trials or is nobody's."""
    location = folder.location_of(folder.path)
    if folder.read(folder.record) is not None or folder.results():
        raise SpecError(
            f"{location} holds trials of {spec.name!r} that would be written over, as their study "
            f"is not in {redact(url)}: give its database with --study-url (or "
            f"PEFT_SWEEPS_STUDY_URL), give another name, or remove them with `peft-sweep delete "
            f"{spec.name}{folder.option}`"
        )
    if mark is not None:
        return
    top = sorted({Path(file).parts[0] for file in folder.files(folder.path)})
    if others := [name for name in top if name not in _BEFORE_THE_STUDY and name[0] != "."]:
        raise SpecError(
            f"{location} is no sweep's folder, it holds {', '.join(others[:3])}: give this sweep "
            "another name or another storage"
        )


@dataclass(frozen=True)
class _Both:
    """A study and a folder of one name."""

    spec: SweepSpec
    folder: SweepFolder
    study: optuna.Study
    mark: str | None
    url: str
    """Of the study, to be shown."""

    @property
    def key(self) -> str:
        return str(self.study.user_attrs["key"])

    @property
    def home(self) -> Mapping[str, str]:
        """Where the study was driven last; empty for one of version 0.1."""
        found: Mapping[str, str] = self.study.user_attrs.get("home", {})
        return found

    @property
    def is_directed(self) -> bool:
        return self.directions == [self.spec.objective.direction]

    @property
    def directions(self) -> list[str]:
        return [direction.name.lower() for direction in self.study.directions]

    @property
    def trials(self) -> Sequence[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    @property
    def died_unmarked(self) -> bool:
        """Whether the driver that has marked the folder died before it marked its study."""
        unmarked = "key" not in self.study.user_attrs and not self.trials
        return unmarked and self.mark is not None and self.is_directed

    def check_study(self) -> None:
        """SpecError if the study is none of a sweep, or somebody else has used it."""
        name, attrs = self.spec.name, self.study.user_attrs
        if not {"key", "spec"} <= attrs.keys() or not self.is_directed:
            directions = f"direction{'s' if len(self.directions) > 1 else ''}"
            raise SpecError(
                f"the study {name!r} in {self.url} is none of this sweep's ({directions} "
                f"{', '.join(self.directions)}, {self._count}): give this sweep another name, or "
                "another database with study_url"
            )
        foreign = [trial.number for trial in self.trials if not self._has_asked(trial)]
        if foreign:
            numbers = ", ".join(map(str, foreign[:10])) + (", ..." if len(foreign) > 10 else "")
            raise SpecError(
                f"the study {name!r} in {self.url} holds trials that this sweep has not asked for "
                f"({numbers}): something else has used it. What the sweep has found stays readable "
                "(leaderboard, export); give the sweep another name to go on"
            )

    def check_folder(self, moved: bool) -> None:
        """SpecError unless the folder is the one that belongs to the study."""
        name, folder, here = self.spec.name, self.folder, self.folder.location_of(self.folder.path)
        study = f"the study {name!r} in {self.url} ({self._count})"
        before = self.home.get("storage", "")
        at_home = is_home(folder, self.study.user_attrs)
        there = f"`peft-sweep resume {name} --storage {shlex.quote(before)}`"
        driven = f"{before} (last driven on {self.home.get('machine')})"
        if self.mark is None and at_home and folder.read(folder.record) is not None:
            return  # of version 0.1, or its mark was deleted by hand
        if self.mark not in (None, self.key):
            raise SpecError(
                f"{here} is the folder of another sweep ({self.mark}) than {study} ({self.key}): "
                "give this sweep another name" + ("" if at_home else f", or go on with {there}")
            )
        if self.mark is None and at_home:
            raise SpecError(
                f"{study} has lost its folder: {here} was removed, or lies in another storage. Put "
                f"it back, remove what is left with `peft-sweep delete {name}{folder.option}`, or "
                "give this sweep another name"
            )
        if self.mark is None:
            raise SpecError(
                f"{study} keeps its files in {driven}, not in {folder.location}: go on with "
                f"{there}, or give this sweep another name. If the storage has moved, move the "
                f"sweep's folder to {here} as well, and say --moved"
            )
        if at_home or moved or not self._is_shared:
            return
        if _is_there(before, name, self.key):
            raise SpecError(
                f"{here} is a copy of the folder in {before}, which shares its study or MLflow "
                f"runs: go on with {there}, or say --moved to go on here, and no more there"
            )
        raise SpecError(
            f"{study} was driven from {driven}, and its folder is now {here}: if it has moved, say "
            f"--moved; if it is a copy, go on with {there}"
        )

    @property
    def _count(self) -> str:
        count = len(self.trials)
        return f"{count} trial{'' if count == 1 else 's'}"

    @property
    def _is_shared(self) -> bool:
        """Whether a copy of the storage shares the study, or MLflow's runs, with the original."""
        tracking = self.spec.tracking
        return self.spec.study_url is not None or (tracking.enabled and tracking.uri is not None)

    def _has_asked(self, trial: FrozenTrial) -> bool:
        """Whether the sweep has asked for a trial, or may still.

        What a sweep draws is written with its fingerprint at once; a driver of version 0.1 may
        have died in between.
        """
        if trial.state == TrialState.WAITING:
            return True
        if trial.state.is_finished():
            return bool({"kind", "result"} & trial.user_attrs.keys())
        return not self.home or not trial.params or "fingerprint" in trial.user_attrs


def _is_there(storage: str, name: str, key: str) -> bool:
    other = SweepFolder(storage_folder(storage), name)
    try:
        return other.read(other.id) == key
    except OSError:
        return False


def _resolved(location: str) -> str:
    return location if object_store.is_url(location) else str(Path(location).resolve())
