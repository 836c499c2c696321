"""Where a sweep is mirrored to: server or database, experiment, and the sweep's identity there."""

import contextlib
import os
import sqlite3
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from sweeps.redact import redact
from sweeps.sqlite_urls import sqlite_file, sqlite_url
from sweeps.tracking.artifact_root import artifact_root, follow_database

_ENVIRONMENT = {
    # Every retry is ours: it looks for the run before creating one. MLflow's own retries (7, for
    # 4 minutes) would also repeat a `create_run` whose answer was lost, and leave a second run.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",  # seconds without an answer from a server that hangs
    "MLFLOW_CONFIGURE_LOGGING": "false",  # log through our handlers, not to the user's screen
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


@dataclass(frozen=True)
class Destination:
    """One sweep's place on one MLflow server or database. Raises ValueError when it cannot work."""

    tracking_uri: str = field(repr=False)  # may carry a password
    experiment: str
    sweep: str
    sweep_key: str
    artifact_root: Path | str | None = None

    def __post_init__(self) -> None:
        if "://" not in self.tracking_uri:
            raise ValueError(
                "tracking.uri must be a URL such as http://host:5000 or sqlite:///runs/mlflow.db, "
                f"got {self.tracking_uri!r}"
            )
        if not self.experiment or not self.sweep:
            raise ValueError("the experiment's and the sweep's name must not be empty")
        if set(self.sweep_key) & set("'\"`"):
            raise ValueError(f"a sweep's name must not contain quotes, got {self.sweep_key!r}")
        if self.is_database and not self.artifact_root and not self.sqlite_file:
            raise ValueError(
                f"tracking.uri {self} is a database: say where the artifacts go (artifact_root)"
            )

    def __str__(self) -> str:
        return redact(self.tracking_uri)

    @property
    def is_database(self) -> bool:
        """Whether this process writes the tables itself, instead of asking a server."""
        return not self.tracking_uri.startswith(("http://", "https://", "databricks"))

    @property
    def sqlite_file(self) -> Path | None:
        """The database file, when it is SQLite's."""
        return sqlite_file(self.tracking_uri)

    def artifact_location(self) -> str | None:
        """URL of the experiment's artifacts; None lets the server decide."""
        if not self.is_database:
            return None
        root = self.artifact_root
        if not root and self.sqlite_file:
            root = artifact_root(self.sqlite_file)
        if isinstance(root, str) and "://" in root:
            return root
        return Path(str(root)).absolute().as_uri()


def prepare(destination: Destination) -> None:
    """What must be in place before mlflow is imported and the store is opened.

    Sets MLFLOW_* variables of this process that the user did not set, or set to nothing, and puts a
    SQLite store into WAL mode, in which its readers (the UI) and its writer do not wait for each
    other. One that was moved takes its artifacts along.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ[name] = os.environ.get(name) or value
    if destination.sqlite_file:
        destination.sqlite_file.parent.mkdir(parents=True, exist_ok=True)
        if not destination.sqlite_file.exists():
            _lay_out(destination.sqlite_file)
        database = sqlite3.connect(destination.sqlite_file, timeout=20)
        database.execute("PRAGMA journal_mode=WAL")
        database.close()
        if not destination.artifact_root:
            follow_database(destination.sqlite_file)


def _lay_out(file: Path) -> None:
    """Create MLflow's tables, all or none: MLflow 3.17 cannot use, nor mend, what a process that
    died in the middle of it has left.
    """
    import sqlalchemy
    from mlflow.store.db.utils import _initialize_tables

    with tempfile.TemporaryDirectory(dir=file.parent, prefix=f".{file.name}.") as folder:
        aside = Path(folder) / file.name
        engine = sqlalchemy.create_engine(sqlite_url(aside))
        _initialize_tables(engine)  # type: ignore[no-untyped-call]
        engine.dispose()
        with contextlib.suppress(FileExistsError):  # somebody else was faster
            os.link(aside, file)
