"""A database of another MLflow is told before a sweep begins."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from sweeps.tracking.destination import Destination, prepare
from sweeps.tracking.schema import schema_mistake


@pytest.fixture
def uri(tmp_path: Path) -> str:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    assert schema_mistake(uri) is None, "it is not there yet"
    prepare(Destination(uri, "experiment", "sweep", "sweep"))
    return uri


def of_version(uri: str, version: str) -> None:
    with closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as database:
        database.execute("UPDATE alembic_version SET version_num = ?", (version,))
        database.commit()


def test_a_database_of_this_mlflow_is_in_order(uri: str) -> None:
    assert schema_mistake(uri) is None
    assert schema_mistake("http://localhost:5000") is None


def test_a_database_of_another_mlflow_is_told_with_the_remedy(uri: str) -> None:
    of_version(uri, "451aebb31d03")  # MLflow 1.0: "add metric step"
    assert f"`mlflow db upgrade {uri}`" in str(schema_mistake(uri))
    of_version(uri, "ffffffffffff")
    assert "a newer MLflow" in str(schema_mistake(uri))


def test_a_file_that_is_no_database_is_mlflows_to_tell(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("no database, but long enough to be looked at as one")
    assert schema_mistake(f"sqlite:///{tmp_path}/mlflow.db") is None
