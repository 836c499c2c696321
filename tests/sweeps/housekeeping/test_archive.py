"""A sweep in a file opens elsewhere: the same board, runs, curves and artifacts."""

import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from peft_jobs import SpecError
from sweeps import open_sweep
from sweeps.housekeeping.archive import archive_sweep, restore_sweep
from sweeps.housekeeping.deletion import delete_sweep
from sweeps.housekeeping.remains import remains_of
from sweeps.records.reader import recorded_spec
from sweeps.run import launch
from sweeps.sqlite_urls import sqlite_url
from sweeps.tracking.artifact_root import follow_database


def runs_of(storage: Path, sweep: str) -> dict[str, Any]:
    """Name -> all that MLflow holds of a run, but for its id and where it lies."""
    follow_database(storage / "mlflow.db")
    client = MlflowClient(sqlite_url(storage / "mlflow.db"))
    experiment = client.get_experiment_by_name("peft-sweeps")
    assert experiment is not None
    found = {}
    runs = client.search_runs([experiment.experiment_id], f"tags.sweep = '{sweep}'")
    names = {run.info.run_id: run.info.run_name for run in runs}
    for run in runs:
        history = {
            name: [
                (m.step, m.value, m.timestamp)
                for m in client.get_metric_history(run.info.run_id, name)
            ]
            for name in run.data.metrics
        }
        tags = dict(run.data.tags)
        tags["mlflow.parentRunId"] = names.get(tags.get("mlflow.parentRunId", ""), "")
        folder = Path(client.download_artifacts(run.info.run_id, ""))
        files = {
            p.relative_to(folder).as_posix(): p.read_bytes()
            for p in folder.rglob("*")
            if p.is_file()
        }
        times = run.info.start_time, run.info.end_time
        found[run.info.run_name] = [
            run.info.status, times, run.data.params, history, tags, files
        ]  # fmt: skip
    return found


@pytest.fixture
def file(storage: Path, tmp_path: Path) -> Path:
    made = archive_sweep(remains_of(storage, "waves"), tmp_path / "waves.tar")
    assert (made.trials, made.runs) == (4, 5)
    assert made.bytes == made.file.stat().st_size
    return made.file


def test_it_opens_in_an_empty_storage(storage: Path, file: Path, tmp_path: Path) -> None:
    before, runs = open_sweep(storage, "waves").leaderboard(), runs_of(storage, "waves")
    assert len(runs) == 5
    shutil.rmtree(storage)
    restore_sweep(file, tmp_path / "new")
    sweep = open_sweep(tmp_path / "new", "waves")
    assert sweep.leaderboard() == before
    assert runs_of(tmp_path / "new", "waves") == runs
    best = sweep.leaderboard().best
    assert best is not None
    assert (sweep.folder.path / str(best.adapter) / "adapter_model.safetensors").is_file()
    names = {p.name.removesuffix("-wal").removesuffix("-shm") for p in (tmp_path / "new").iterdir()}
    assert names == {"mlartifacts", "mlflow.db", "optuna.db", "waves"}


def test_it_comes_back_beside_others_and_goes_on(storage: Path, file: Path) -> None:
    runs, other = runs_of(storage, "waves"), runs_of(storage, "other")
    before = open_sweep(storage, "waves").leaderboard()
    with pytest.raises(SpecError, match="is there already: restore into another storage"):
        restore_sweep(file, storage)
    delete_sweep(remains_of(storage, "waves"))
    restore_sweep(file, storage)
    assert open_sweep(storage, "waves").leaderboard() == before
    assert runs_of(storage, "waves") == runs
    assert runs_of(storage, "other") == other
    outcome = launch(recorded_spec(storage, "waves", ["budget.n_trials=5"]))
    assert len(outcome.leaderboard.rows) == 5
    assert len(runs_of(storage, "waves")) == 6  # each trial once, the new one too


def test_a_plain_tar_is_a_storage(file: Path, tmp_path: Path) -> None:
    with tarfile.open(file) as archive:
        archive.extractall(tmp_path / "by hand", filter="data")
    assert len(open_sweep(tmp_path / "by hand", "waves").leaderboard().rows) == 4


def test_half_a_sweep_is_not_archived(storage: Path, tmp_path: Path) -> None:
    shutil.rmtree(storage / "waves")
    with pytest.raises(SpecError, match="has lost its folder"):
        archive_sweep(remains_of(storage, "waves"), tmp_path / "waves.tar")
    (storage / "optuna.db").unlink()
    with pytest.raises(SpecError, match="has lost its study"):
        archive_sweep(remains_of(storage, "other"), tmp_path / "other.tar")
    assert not list(tmp_path.glob("*.tar"))


def test_what_is_left_out_is_told(storage: Path, tmp_path: Path) -> None:
    record = storage / "waves" / "sweep.json"
    tree = json.loads(record.read_text())
    tree["sweep"]["tracking"]["uri"] = "http://mlflow.example:5000"
    tree["sweep"]["trial"]["data"]["train"]["path"] = "/data/mine.jsonl"
    record.write_text(json.dumps(tree))
    made = archive_sweep(remains_of(storage, "waves"), tmp_path / "waves.tar")
    assert made.runs == 0
    assert "data: /data/mine.jsonl" in made.left_out
    assert "the MLflow runs at http://mlflow.example:5000" in made.left_out


@pytest.mark.parametrize("name", ["../out", "/tmp/out-of-it"])
def test_an_archive_that_would_write_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    with tarfile.open(tmp_path / "bad.tar", "w") as archive:
        member = tarfile.TarInfo(name)
        member.size = 3
        archive.addfile(member, io.BytesIO(b"out"))
    with pytest.raises(SpecError, match="is no archive"):
        restore_sweep(tmp_path / "bad.tar", tmp_path / "deep" / "runs")
    assert not list(tmp_path.rglob("out*"))
    (tmp_path / "text.tar").write_text("no tar")
    with pytest.raises(SpecError, match="is no archive that can be read"):
        restore_sweep(tmp_path / "text.tar", tmp_path / "runs")
