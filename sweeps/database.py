"""The database of the studies: opened with care, and asked again when it falters."""

import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar

import optuna
import sqlalchemy
import sqlalchemy.event

from peft_jobs import SpecError
from sweeps.redact import redact

log = logging.getLogger(__name__)

_T = TypeVar("_T")


def open_storage(url: str) -> optuna.storages.RDBStorage:
    """Optuna's storage at an SQLAlchemy URL; SQLite with a write-ahead log (ten times faster).

    SpecError if the database cannot be opened.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        storage = _open(url)
    except (ImportError, RuntimeError, sqlalchemy.exc.SQLAlchemyError) as error:
        reason = redact(str(error))
        raise SpecError(f"the study's database {redact(url)} cannot be opened: {reason}") from error
    if storage.engine.dialect.name == "sqlite":

        @sqlalchemy.event.listens_for(storage.engine, "connect")
        def _pragmas(connection: Any, _: Any) -> None:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute("PRAGMA busy_timeout=30000")

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


def retry(call: Callable[[], _T], tries: int = 6) -> _T:
    """`call()`; a hiccup of the storage is waited out for seconds, it must not end a sweep."""
    for attempt in range(tries - 1):
        try:
            return call()
        except (optuna.exceptions.StorageInternalError, sqlalchemy.exc.OperationalError) as error:
            log.warning("the study's storage failed, again in a moment: %s", error)
            time.sleep(0.2 * 2**attempt)
    return call()
