"""Where the artifacts of a SQLite store of MLflow's lie: beside it, also after it was moved.

MLflow records absolute locations, of experiments and of runs. A storage that is moved, or copied,
would go on writing into the old place.
"""

import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from sweeps.file_names import ARTIFACTS_FOLDER


def artifact_root(database: Path) -> Path:
    """The folder of the artifacts of the runs that are written straight into `database`."""
    return database.absolute().parent / ARTIFACTS_FOLDER


def follow_database(database: Path) -> None:
    """Let what the store records point to the artifacts beside it, if it was moved with them.

    Locations that are no folder called as ours is stay as they are. Raises sqlite3.Error.
    """
    root = artifact_root(database)
    with closing(sqlite3.connect(database, timeout=20)) as store, store:
        if not store.execute("SELECT 1 FROM sqlite_master WHERE name = 'experiments'").fetchone():
            return
        found = store.execute("SELECT DISTINCT artifact_location FROM experiments")
        for (location,) in found.fetchall():
            if _has_moved(location, root):
                for table, column in (
                    ("experiments", "artifact_location"),
                    ("runs", "artifact_uri"),
                    ("model_versions", "source"),
                    ("model_versions", "storage_location"),
                ):
                    store.execute(
                        f"UPDATE {table} SET {column} = ?1 || substr({column}, length(?2) + 1) "
                        f"WHERE {column} = ?2 OR substr({column}, 1, length(?2) + 1) = ?2 || '/'",
                        (root.as_uri(), location),
                    )


def local_path(location: str | None) -> Path | None:
    """The folder of a `file://` location; None for any other."""
    parts = urlsplit(location or "")
    return Path(url2pathname(parts.path)) if parts.scheme == "file" else None


def _has_moved(location: str | None, root: Path) -> bool:
    before = local_path(location)
    if before is None or before.name != ARTIFACTS_FOLDER or before == root:
        return False
    return root.is_dir() or not before.is_dir()
