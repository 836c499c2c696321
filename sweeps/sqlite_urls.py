"""Paths of SQLite files as SQLAlchemy URLs, and back.

A path may hold what means something in a URL (`?`, `%`, `#`): Optuna, MLflow and SQLAlchemy read
the URL, so it is SQLAlchemy that writes it.
"""

from pathlib import Path
from urllib.parse import unquote

import sqlalchemy


def sqlite_url(file: Path) -> str:
    """The URL of a SQLite file; with the driver's name in it where characters are quoted.

    Without, MLflow 3.17 takes what is quoted for the path, and makes an empty folder of that name
    (`mlflow/store/db/utils.py`, `_make_parent_dirs_if_sqlite`).
    """
    url = sqlalchemy.URL.create("sqlite", database=str(file))
    plain = url.render_as_string()
    if plain == f"sqlite:///{file}":
        return plain
    return url.set(drivername="sqlite+pysqlite").render_as_string()


def sqlite_file(url: str) -> Path | None:
    """The file of a URL; None if it is none of a SQLite file."""
    if not url.startswith("sqlite"):
        return None
    made = sqlalchemy.make_url(url)
    database, query = made.database or "", made.query
    if "uri" in query and database.startswith("file:"):  # SQLite's own form, file:/path?uri=true
        database = ":memory:" if "mode" in query and query["mode"] == "memory" else database[5:]
        database = unquote(database)
    return None if database in ("", ":memory:") else Path(database)
