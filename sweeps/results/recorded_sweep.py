"""Opens a sweep from its storage, to be read: nothing is started, nothing is changed.

sweep = open_sweep("runs", "demo")
sweep.leaderboard().to_frame()
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import optuna
import sqlalchemy as sa

from peft_jobs import SpecError, TrialResult
from sweeps.confirmation.confirmed import confirmation_of
from sweeps.file_names import ID_FILE
from sweeps.records.layout import SweepFolder, storage_folder
from sweeps.records.ownership import check_own
from sweeps.records.reader import read_record, recorded_names, validated, without_credentials
from sweeps.redact import redact
from sweeps.results.curves import Curves, read_curves
from sweeps.results.leaderboard import Leaderboard
from sweeps.results.ranking import make_leaderboard
from sweeps.results.repeated_rows import row_noise
from sweeps.results.rows import read_rows, rows_reader
from sweeps.results.told_apart import told_apart
from sweeps.results.trials import Trials, read_trials
from sweeps.results.verdict import Verdict, verdict_of
from sweeps.spec import SweepSpec
from sweeps.study.database import open_to_read
from sweeps.study.lease import Holder, read_lease
from sweeps.study.study import SweepStudy

if TYPE_CHECKING:
    import pandas

Databases = dict[str, optuna.storages.RDBStorage]


@dataclass(frozen=True)
class RecordedSweep:
    """A sweep in its storage: its study and its files, as they stand whenever they are asked."""

    study: SweepStudy
    folder: SweepFolder

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def spec(self) -> SweepSpec:
        """What ran: resolved, and with the storage where it was found now."""
        return self.study.spec

    def results(self) -> list[TrialResult]:
        """Of the trials that were launched and have ended, in order of number."""
        found = (trial.user_attrs.get("result") for trial in self.study.launched())
        return [TrialResult.model_validate(result) for result in found if result is not None]

    def leaderboard(self, intervals: bool = False) -> Leaderboard:
        """The trials that were launched, ranked; SpecError if they cannot be compared.

        `intervals` reads what each trial's last evaluation has found of each row, and tells which
        rows the validation rows do not tell from the first.
        """
        board, read = make_leaderboard(self.study), rows_reader(self.study, self.folder)
        if board.confirmation is not None and (drawn := row_noise(self.study, read)) is not None:
            board = replace(board, confirmation=confirmation_of(self.study, drawn))
        return told_apart(board, read) if intervals else board

    def verdict(self, board: Leaderboard | None = None) -> Verdict:
        """What the sweep says now: what to train, how sure that is, what it cost, what to do next.

        `board` is one with intervals that was made before. Raises as `leaderboard`.
        """
        return verdict_of(board or self.leaderboard(intervals=True), self.study, self.folder)

    def trials(self) -> Trials:
        """All trials of the study, also those that were turned away before launch."""
        return read_trials(self.study)

    def curves(self) -> Curves:
        """What the trials reported while they ran; Unavailable if a store does not answer."""
        return read_curves(self.study, self.folder)

    def rows(self, number: int) -> "pandas.DataFrame":
        """What the last evaluation of a trial has found of each validation row.

        SpecError if there is no such trial, or it has not been evaluated; Unavailable if a store
        does not answer.
        """
        trials = self.study.trials()
        known = trials[number].user_attrs if 0 <= number < len(trials) else {}
        found = read_rows(self.folder, number, int(known.get("attempt", 0)))
        if found is None:
            raise SpecError(f"there are no scores by row of a trial {number} in {self.name!r}")
        return found


class Starting(SpecError):
    """A sweep whose driver has no trial yet: it loads base and data."""

    def __init__(self, folder: SweepFolder, holder: Holder, engine: sa.Engine) -> None:
        super().__init__(
            f"the sweep {folder.name!r} is starting: {holder} loads its base and data, since "
            f"{max(0.0, time.time() - holder.since):.0f} s; it has no trial yet"
        )
        self.name, self.option = folder.name, folder.option
        self.holder, self.engine = holder, engine


@dataclass(frozen=True)
class Unreadable:
    """A sweep whose record cannot be read, and why."""

    name: str
    reason: str


def open_sweep(storage: str | Path, name: str, study_url: str | None = None) -> RecordedSweep:
    """The sweep `name` of `storage`, a folder or an object store's URL.

    `study_url` is needed where the sweep's database takes credentials, because the record holds
    none; a sweep that was kept in `<storage>/optuna.db` is read from there, whatever is given.
    Raises SpecError if there is no such sweep, or its study cannot be opened; Starting if it has no
    trial yet.
    """
    return _open(storage_folder(storage), name, study_url, {})


def open_sweeps(
    storage: str | Path, study_url: str | None = None
) -> Iterator[RecordedSweep | Unreadable]:
    """Every sweep of `storage`, by name, also those that are starting."""
    folder, opened = storage_folder(storage), Databases()
    recorded = recorded_names(folder)
    for name in sorted({*recorded, *recorded_names(folder, ID_FILE)}):
        try:
            yield _open(folder, name, study_url, opened)
        except SpecError as error:
            if name in recorded or isinstance(error, Starting):
                yield Unreadable(name, str(error))


def _open(storage: Path, name: str, study_url: str | None, opened: Databases) -> RecordedSweep:
    folder = SweepFolder(storage.absolute(), name)
    try:
        record = read_record(storage, name)
    except SpecError:
        _tell_if_starting(folder, study_url)
        raise
    spec = validated({**record["sweep"], "storage": folder.location}, folder)
    url = folder.study_url if spec.study_url is None else study_url or spec.study_url
    if "***@" in url:
        raise SpecError(without_credentials(name, url))
    rdb = opened.get(url) or open_to_read(url)
    if rdb is None:
        gone = folder.study_database if spec.study_url is None else redact(url)
        raise SpecError(f"the study of {name!r} is gone: no {gone}")
    opened[url] = rdb
    try:
        rdb.get_study_id_from_name(name)
    except KeyError:
        raise SpecError(f"there is no study {name!r} in {redact(url)}") from None
    study = SweepStudy(spec, rdb)
    check_own(folder, study.optuna.user_attrs)
    return RecordedSweep(study, SweepFolder(storage, name))


def _tell_if_starting(folder: SweepFolder, study_url: str | None) -> None:
    """Raise Starting if there is no record yet, but a driver."""
    if folder.read(folder.id) is None or folder.read(folder.record) is not None:
        return
    rdb = open_to_read(study_url or folder.study_url)
    holder = None if rdb is None else read_lease(rdb.engine, folder.name)
    if rdb is not None and holder is not None and not holder.is_gone:
        raise Starting(folder, holder, rdb.engine)
