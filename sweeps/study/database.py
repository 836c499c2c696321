"""The database of the studies: opened with care, and asked again when it falters."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import optuna
import sqlalchemy
import sqlalchemy.event

from peft_jobs import SpecError
from peft_jobs.storage import retry as storage_retry
from sweeps.errors import StudyGone, Unavailable
from sweeps.redact import redact

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


def open_storage(url: str) -> optuna.storages.RDBStorage:
    """Optuna's storage at an SQLAlchemy URL; SQLite with a write-ahead log (ten times faster).

    SpecError if the database cannot be opened, `Unavailable` if it does not answer.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        storage = _open(url)
    except (ImportError, RuntimeError, sqlalchemy.exc.SQLAlchemyError) as error:
        away = isinstance(error, sqlalchemy.exc.OperationalError) and "unable" not in str(error)
        kind = Unavailable if away else SpecError
        reason = redact(str(error))
        raise kind(f"the study's database {redact(url)} cannot be opened: {reason}") from error
    if storage.engine.dialect.name == "sqlite":

        @sqlalchemy.event.listens_for(storage.engine, "connect")
        def _pragmas(connection: Any, _: Any) -> None:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute("PRAGMA busy_timeout=10000")

        storage.engine.dispose()
    return storage


def _open(url: str, tries: int = 5) -> optuna.storages.RDBStorage:
    """Optuna's storage; two processes that create its tables at once get in each other's way."""
    for _ in range(tries - 1):
        try:
            return optuna.storages.RDBStorage(url)
        except (sqlalchemy.exc.IntegrityError, sqlalchemy.exc.OperationalError):
            time.sleep(0.5)
    return optuna.storages.RDBStorage(url)


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

    `on_wait` is called before each further try. Raises the last error after `patience_seconds`.
    """

    def pause(seconds: float) -> None:
        on_wait()
        time.sleep(seconds)

    found = storage_retry.retry(
        call,
        "the study's database",
        DATABASE_ERRORS,
        unless=_MISTAKES,
        patience_seconds=patience_seconds,
        pause=pause,
        told=lambda error: redact(str(error)),
    )
    return cast(_T, found)  # None only where a call is not wanted any more
