"""Whatever a path holds, its URL opens that file and no other."""

from pathlib import Path

import pytest
import sqlalchemy

from sweeps.sqlite_urls import sqlite_file, sqlite_url

NAMES = ["plain", "a b", "x?mode=ro", "100%25", "feature%2Fx", "a;b", "#1", "it's", '"q"', "ä🎉"]


@pytest.mark.parametrize("name", [*NAMES, "a+b", "a&b", "a\\b", "[x]", "~", ":memory:", "a@b:c"])
def test_a_url_opens_the_file_that_it_was_made_of(tmp_path: Path, name: str) -> None:
    file = tmp_path / name / "some.db"
    file.parent.mkdir()
    url = sqlite_url(file)
    assert sqlite_file(url) == file
    engine = sqlalchemy.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("CREATE TABLE here (x)"))
    engine.dispose()
    assert file.is_file()
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_plain_path_is_written_as_everywhere() -> None:
    assert sqlite_url(Path("/x/runs/optuna.db")) == "sqlite:////x/runs/optuna.db"
    assert sqlite_url(Path("runs/optuna.db")) == "sqlite:///runs/optuna.db"


@pytest.mark.parametrize(
    ("url", "file"),
    [
        ("sqlite:///file:/x/study.db?uri=true&password=p", "/x/study.db"),
        ("sqlite:///file:/x/a%20b.db?mode=rw&uri=true", "/x/a b.db"),
        ("sqlite+pysqlite:////x/a%2520b.db", "/x/a%20b.db"),
        ("sqlite:///runs/o.db?timeout=5", "runs/o.db"),
    ],
)
def test_other_forms_of_a_url_name_their_file_too(url: str, file: str) -> None:
    assert sqlite_file(url) == Path(file)


NO_FILES = [
    *("sqlite://", "sqlite:///:memory:", "postgresql://h/sqlite"),
    "sqlite:///file:shared?mode=memory&cache=shared&uri=true",
]


@pytest.mark.parametrize("url", NO_FILES)
def test_what_is_no_file_has_none(url: str) -> None:
    assert sqlite_file(url) is None
