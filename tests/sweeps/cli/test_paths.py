"""Sweeps in folders of any name: written where they should be, told in commands that can be pasted.
A storage that must not be written can be read."""

import json
import shlex
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.mlflow_database import lay_out
from tests.support.read_only import OBEYING, make_read_only, make_writable
from tests.sweeps.cli.conftest import Cli

NAMES = ["runs?x=1", "100%25", "feature%2Fx", "it's", "a;b", "a b#c", "[bold]läufe"]


@pytest.mark.parametrize("name", NAMES)
def test_a_sweep_lies_where_it_should_and_is_found_by_the_printed_command(
    cli: Cli, folder: Path, name: str
) -> None:
    storage = folder / "d" / name
    lay_out(storage)
    words = ["budget.n_trials=2", f"storage={json.dumps(str(storage))}", "tracking.enabled=true"]
    done = cli("run", "waves.yaml", *words)
    assert done.exit_code == 0, done.output
    assert [path.name for path in storage.parent.iterdir()] == [name]
    found = {path.name for path in storage.iterdir() if not path.name.endswith(("-wal", "-shm"))}
    assert found == {"optuna.db", "mlflow.db", "mlartifacts", "waves"}
    (printed,) = [line for line in done.stdout.splitlines() if "peft-sweep export" in line]
    words = shlex.split(printed.partition("  write")[0])
    assert words == ["peft-sweep", "export", "waves", "--storage", str(storage)]
    assert cli("leaderboard", *words[2:]).exit_code == 0
    shown = cli("show", "waves", 0, *words[3:]).stdout
    again = shlex.split(shown[shown.index("python -m peft_jobs") :])
    assert again[4:] == [str(storage / "waves" / "trials" / "0000" / "trial.json")]


OBEDIENT = """
import json, sys
from typer.testing import CliRunner
from sweeps.cli.app import app
done = [CliRunner().invoke(app, words) for words in json.load(sys.stdin)]
print(json.dumps([[one.exit_code, one.stdout, one.stderr] for one in done]))
"""


def obeying(*commands: tuple[str, ...]) -> list[tuple[int, str, str]]:
    """Code, output and errors of each command, one after another in a process that obeys."""
    done = subprocess.run(
        [*OBEYING, sys.executable, "-c", OBEDIENT],
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return [tuple(one) for one in json.loads(done.stdout)]


@pytest.mark.parametrize("with_log", [False, True], ids=["closed", "cut off"])
def test_a_storage_that_must_not_be_written_is_read(
    ended: Cli, folder: Path, recorded: Path, with_log: bool
) -> None:
    storage = folder / "runs"
    if with_log:  # what its driver wrote last stands in SQLite's log only
        with sqlite3.connect(recorded / "optuna.db") as writer:
            shutil.copy(recorded / "optuna.db", storage)
            writer.execute("PRAGMA journal_mode=WAL")
            writer.execute("PRAGMA wal_autocheckpoint=0")
            writer.execute("UPDATE trial_values SET value = 0.125 WHERE value_type = 'FINITE'")
            writer.commit()
            shutil.copy(recorded / "optuna.db-wal", storage)
            writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        writer.close()
        shutil.copy(recorded / "optuna.db", folder / "whole.db")
    before = {path: path.read_bytes() for path in storage.rglob("*") if path.is_file()}
    make_read_only(storage)
    try:
        *read, resumed = obeying(
            ("leaderboard", "waves", "--json"),
            ("leaderboard", "waves", "--csv"),
            ("leaderboard", "waves", "--html", str(folder / "page.html")),
            ("show", "waves", "1"),
            ("status", "waves"),
            ("list",),
            ("resume", "waves", "budget.n_trials=20"),
        )
        assert [(code, said) for code, _, said in read if code] == []
        values = [row["value"] for row in json.loads(read[0][1])["rows"] if row["rank"]]
        assert (set(values) == {0.125}) is with_log
        assert resumed[0] == 2
        assert "optuna.db must not be written here" in resumed[2]
    finally:
        make_writable(storage)
    assert {path: path.read_bytes() for path in storage.rglob("*") if path.is_file()} == before


def test_a_winner_that_left_no_adapter_is_told(ended: Cli) -> None:
    done = ended("export", "waves")
    assert done.exit_code == 2
    assert "left no adapter: it is COMPLETE" in done.stderr
