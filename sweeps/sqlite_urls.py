"""Paths of SQLite files as SQLAlchemy URLs, and back.

A path may hold what means something in a URL (`?`, `%`, `#`): Optuna, MLflow and SQLAlchemy read
the URL, so it is SQLAlchemy that writes it.
"""

from pathlib import Path

import sqlalchemy


def sqlite_url(file: Path) -> str:
    """The URL of a SQLite file."""
    return sqlalchemy.URL.create("sqlite", database=str(file)).render_as_string()


def sqlite_file(url: str) -> Path | None:
    """The file of a URL; None if it is none of a SQLite file."""
    if not url.startswith("sqlite"):
        return None
    database = sqlalchemy.make_url(url).database
    return None if database in (None, "", ":memory:") else Path(str(database))
