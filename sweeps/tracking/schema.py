"""Whether the installed MLflow can use a database that is there already."""

import shlex
import sqlite3
from contextlib import closing
from pathlib import Path

from sweeps.sqlite_urls import sqlite_file


def schema_mistake(tracking_uri: str) -> str | None:
    """Why the SQLite database of `tracking_uri` cannot be written, with the remedy; None if it can
    or there is none yet. Of servers and other databases nothing is known before they are asked."""
    file = sqlite_file(tracking_uri)
    if file is None or not file.is_file():
        return None
    with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as database:
        try:
            rows = database.execute("SELECT version_num FROM alembic_version").fetchall()
        except sqlite3.Error:  # no tables yet, or no database: MLflow says what it is
            return None
    versions = {str(row[0]) for row in rows}
    import mlflow
    from alembic.script import ScriptDirectory

    folder = Path(mlflow.__file__).parent / "store" / "db_migrations"
    known = ScriptDirectory(str(folder))
    if not versions or versions == {known.get_current_head()}:
        return None
    older = versions <= {script.revision for script in known.walk_revisions()}
    remedy = (
        f"`mlflow db upgrade {shlex.quote(tracking_uri)}` brings it up to date (make a copy first)"
        if older
        else "install that MLflow, or name another database"
    )
    age = "an older" if older else "a newer"
    return (
        f"tracking.uri: {file} was made by {age} MLflow than {mlflow.__version__}, so that nothing "
        f"can be recorded in it: {remedy}"
    )
