"""The database of the studies: opened with care, and asked again when it falters."""

import contextlib
import os
import shutil
import sqlite3
import tempfile
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import optuna
import sqlalchemy
import sqlalchemy.event

from peft_jobs import SpecError
from peft_jobs.storage import retry as storage_retry
from sweeps.errors import StudyGone, Unavailable
from sweeps.futures import future_of
from sweeps.redact import redact
from sweeps.sqlite_urls import sqlite_file
from sweeps.study.trial_rows import TrialRows
from sweeps.study.unanswered import ANSWER_SECONDS, unanswered

CONNECT_SECONDS = 10
OPEN_SECONDS = 60.0
"""How long a database may take to be opened, and its tables to be made."""
DATABASE_ERRORS = (
    optuna.exceptions.StorageInternalError,
    sqlalchemy.exc.DBAPIError,
    sqlalchemy.exc.TimeoutError,
)
"""What a database raises, through Optuna or not: a failover's own errors too (InternalError from a
server that has become read-only, InterfaceError from a torn connection)."""
_MISTAKES = (
    sqlalchemy.exc.IntegrityError,
    sqlalchemy.exc.ProgrammingError,
    sqlalchemy.exc.DataError,
)
"""Those of them that asking again does not mend."""

_T = TypeVar("_T")


class Write(Protocol):
    """Runs what changes the study's database, and waits for a database that is away."""

    def __call__(self, call: Callable[[], _T], /) -> _T: ...


def open_storage(url: str) -> optuna.storages.RDBStorage:
    """Optuna's storage at an SQLAlchemy URL; SQLite with a write-ahead log (ten times faster).

    SpecError if the database cannot be opened or must not be written, `Unavailable` if it does not
    answer.
    """
    file = sqlite_file(url)
    if file is not None and file.exists() and not _may_write(file):
        raise SpecError(f"{file} must not be written here: what it holds can only be read")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    opened = future_of(partial(_open, url), thread="database")
    try:
        storage = _told(url, partial(opened.result, OPEN_SECONDS))
    except TimeoutError as error:
        told = f"the study's database {redact(url)} has not answered for {OPEN_SECONDS:g} s"
        raise Unavailable(told) from error
    if storage.engine.dialect.name == "sqlite":

        @sqlalchemy.event.listens_for(storage.engine, "connect")
        def _pragmas(connection: Any, _: Any) -> None:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute("PRAGMA busy_timeout=10000")

    else:
        unanswered.watch(storage.engine)
    storage.engine.dispose()  # what follows opens new connections, with all this
    return storage


def open_to_read(url: str) -> optuna.storages.RDBStorage | None:
    """The storage for what only reads; None if the SQLite file is not there or holds no studies.

    A file is left as it is: nothing is created in it, nor in a folder that must not be written.
    Where both may be written, others may be written to as well (`request_stop`). Raises as
    `open_storage` does.
    """
    file = sqlite_file(url)
    if file is None:
        return open_storage(url)
    if not file.is_file():
        return None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return _told(url, partial(_open_file, url, file))


def _told(url: str, call: Callable[[], _T]) -> _T:
    """`call()`, with what a database says as an error of ours."""
    try:
        return call()
    except (ImportError, RuntimeError, sqlalchemy.exc.SQLAlchemyError, sqlite3.Error) as error:
        away = isinstance(error, sqlalchemy.exc.OperationalError) and "unable" not in str(error)
        kind = Unavailable if away else SpecError
        reason = redact(str(getattr(error, "orig", None) or error))
        raise kind(f"the study's database {redact(url)} cannot be opened: {reason}") from error


def _open_file(url: str, file: Path) -> optuna.storages.RDBStorage | None:
    connect, copy = _written(file) if _may_write(file) else _read_only(file)
    with contextlib.closing(connect()) as probe:
        if not probe.execute("SELECT 1 FROM sqlite_master WHERE name = 'studies'").fetchone():
            return None
    kwargs = {"creator": connect}
    storage = TrialRows(url, engine_kwargs=kwargs, skip_table_creation=True)
    if copy is not None:
        weakref.finalize(storage, copy.cleanup)
    return storage


def _may_write(file: Path) -> bool:
    """Beside the file SQLite writes its log."""
    return os.access(file, os.W_OK) and os.access(file.parent, os.W_OK)


_Connect = Callable[[], sqlite3.Connection]


_Way = tuple[_Connect, "tempfile.TemporaryDirectory[str] | None"]


def _written(file: Path) -> _Way:
    return partial(_connect, file, "mode=rw"), None


def _read_only(file: Path) -> _Way:
    """How to read a file whose folder is not to be written, and the copy that this takes.

    SQLite reads a file in WAL mode only beside its `-shm`, which it makes where it can. Without
    one, what stands in the log is read from a copy; without a log, the file is all there is.
    """
    connect = partial(_connect, file, "mode=ro")
    try:
        with contextlib.closing(connect()) as probe:
            probe.execute("SELECT 1 FROM sqlite_master").fetchone()
        return connect, None
    except sqlite3.OperationalError:
        log = file.with_name(f"{file.name}-wal")
        if not log.is_file() or not log.stat().st_size:
            return partial(_connect, file, "mode=ro&immutable=1"), None
    copy = tempfile.TemporaryDirectory(prefix="peft-sweeps-")
    for found in (file, log):
        shutil.copyfile(found, Path(copy.name) / found.name)
    return partial(_connect, Path(copy.name) / file.name, "mode=rw"), copy


def _connect(file: Path, query: str) -> sqlite3.Connection:
    uri = f"{file.absolute().as_uri()}?{query}"
    return sqlite3.connect(uri, uri=True, timeout=10, check_same_thread=False)


def _open(url: str, tries: int = 5) -> optuna.storages.RDBStorage:
    """Optuna's storage; two processes that create its tables at once get in each other's way."""
    kwargs = {"connect_args": _connect_args(sqlalchemy.engine.make_url(url))}
    for _ in range(tries - 1):
        try:
            return TrialRows(url, engine_kwargs=kwargs)
        except (sqlalchemy.exc.IntegrityError, sqlalchemy.exc.OperationalError):
            time.sleep(0.5)
    return TrialRows(url, engine_kwargs=kwargs)


def _connect_args(url: sqlalchemy.engine.URL) -> dict[str, object]:
    """Time-outs of a server's driver, where the URL gives none: to connect, and for a peer that
    is gone without a word."""
    args: dict[str, object] = {}
    if url.drivername in ("postgresql", "postgresql+psycopg2", "postgresql+psycopg"):
        args = {
            "connect_timeout": CONNECT_SECONDS,
            "keepalives_idle": 30,
            "keepalives_interval": 10,
        }
    elif url.drivername in ("mysql", "mysql+mysqldb", "mysql+pymysql"):
        answer = int(ANSWER_SECONDS)
        args = {"connect_timeout": CONNECT_SECONDS, "read_timeout": answer, "write_timeout": answer}
    return {name: value for name, value in args.items() if name not in url.query}


def name_metric(study: optuna.Study, metric: str) -> None:
    """Give the study's objective its name, by which Optuna's pictures and dashboard show it."""
    if study.metric_names != [metric]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names([metric])


@contextlib.contextmanager
def knowing_study(storage: optuna.storages.RDBStorage, study_id: int) -> Iterator[None]:
    """Raise StudyGone if that is why the database does not know something in the block."""
    try:
        yield
    except KeyError:
        try:
            storage.get_study_name_from_id(study_id)
        except KeyError as error:
            raise StudyGone(
                "the study was deleted from its database while the sweep ran; what its trials have "
                "written stays in the storage"
            ) from error
        raise


def retry(
    call: Callable[[], _T],
    on_wait: Callable[[], object] = lambda: None,
    patience_seconds: float | None = None,
) -> _T:
    """`call()`; a database that is locked or away is waited for, it must not end a sweep.

    `on_wait` is called before each further try. Raises Unavailable after `patience_seconds`, and
    what asking again does not mend at once.
    """

    def pause(seconds: float) -> None:
        on_wait()
        unanswered.connect_anew()
        time.sleep(seconds)

    def answered() -> _T:
        with unanswered.call():
            return call()

    try:
        found = storage_retry.retry(
            answered,
            "the study's database",
            DATABASE_ERRORS,
            unless=_MISTAKES,
            patience_seconds=patience_seconds,
            pause=pause,
            told=lambda error: redact(str(error)),
        )
    except _MISTAKES:
        raise
    except DATABASE_ERRORS as error:
        raise Unavailable(f"the study's database is away: {redact(str(error))}") from error
    return cast(_T, found)  # None only where a call is not wanted any more
