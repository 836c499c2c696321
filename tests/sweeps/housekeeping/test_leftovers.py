"""`gc` removes what can be made again or was never finished, and nothing else."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from peft_jobs.storage import object_store
from sweeps.cli.app import app
from sweeps.housekeeping.leftovers import QUIET_SECONDS, leftovers, remove_leftovers


def age(path: Path) -> None:
    """Let a file or a folder be older than what may be somebody's work."""
    then = time.time() - QUIET_SECONDS - 60
    for found in (path, *path.rglob("*")):
        os.utime(found, (then, then))


def names(storage: Path) -> set[str]:
    return {str(found.path.relative_to(storage)) for found in leftovers(storage)}


@pytest.fixture
def littered(storage: Path) -> Path:
    """Two sweeps, and all that can be left beside them, all of it old."""
    (storage / "cache" / "tokens" / "0a").mkdir(parents=True)
    (storage / "cache" / "tokens" / "0a" / "data.arrow").write_bytes(b"x" * 5000)
    (storage / ".waves-best.0a1b2c3d").mkdir()
    (storage / "waves" / ".sweep.json.0a1b2c3d").write_text("{")
    (storage / "cache" / "tokens" / ".0b.0a1b2c3d").mkdir()
    (storage / "begun").mkdir()
    (storage / "begun" / "sweep.id").write_text("begun-1")
    (storage / "mine").mkdir()
    (storage / "mine" / "thesis.tex").write_text("mine")
    (storage / "waves" / ".hidden").write_text("mine")
    age(storage)
    return storage


def test_what_no_sweep_needs_is_found_and_removed(littered: Path) -> None:
    expected = {
        "cache",
        "cache/tokens/.0b.0a1b2c3d",
        ".waves-best.0a1b2c3d",
        "waves/.sweep.json.0a1b2c3d",
        "begun",
    }
    before = {path for path in littered.rglob("*") if path.is_file()}
    assert names(littered) == expected
    dry = CliRunner().invoke(app, ["gc", "--dry-run", "--json", "--storage", str(littered)])
    assert len(json.loads(dry.stdout)["found"]) == len(expected)
    assert {path for path in littered.rglob("*") if path.is_file()} == before
    done = CliRunner().invoke(app, ["gc", "--storage", str(littered)])
    assert done.exit_code == 0, done.output
    assert "Removed " in done.stderr
    gone = before - {path for path in littered.rglob("*") if path.is_file()}
    assert {str(path.relative_to(littered)) for path in gone} == {
        "cache/tokens/0a/data.arrow",
        "waves/.sweep.json.0a1b2c3d",
        "begun/sweep.id",
    }
    assert names(littered) == set()


def test_what_is_new_may_be_somebody_s_work(littered: Path) -> None:
    now = time.time()
    for path in littered.rglob("*"):
        os.utime(path, (now, now))
    assert names(littered) == set()


@pytest.mark.parametrize("why", ["unfinished", "unreadable"])
def test_the_cache_stays_while_a_sweep_may_need_it(littered: Path, why: str) -> None:
    record = littered / "waves" / "sweep.json"
    text = record.read_text()
    record.write_text(text.replace('"n_trials": 4', '"n_trials": 40') if why[2:4] == "fi" else "{")
    assert "cache" not in names(littered)


def test_what_is_staged_of_a_store_goes_when_the_store_has_it_no_more(
    storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PEFT_SWEEPS_STAGING", str(tmp_path / "staging"))
    url = f"file://{storage}"
    staged, host = object_store.staged(url), object_store.local_folder(url)
    for folder in (staged, host):
        for name in ("waves", "gone"):
            (folder / name / "trials").mkdir(parents=True)
    age(tmp_path / "staging")
    found = leftovers(url)
    assert {item.path for item in found} == {staged / "gone", host / "gone"}
    remove_leftovers(found)
    assert (staged / "waves").is_dir()
    assert (storage / "waves").is_dir()


def test_a_storage_without_sweeps_has_nothing_to_remove(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    assert leftovers(tmp_path / "runs") == []
    shutil.rmtree(tmp_path / "runs")
    assert leftovers(tmp_path / "runs") == []
