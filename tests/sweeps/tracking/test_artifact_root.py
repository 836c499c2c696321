"""A storage that is moved or copied takes MLflow's artifacts along."""

import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient

from sweeps.sqlite_urls import sqlite_url
from sweeps.tracking import Artifact, MlflowTracker
from sweeps.tracking.artifact_root import follow_database
from sweeps.tracking.outbox import Outbox
from tests.support.mlflow_database import lay_out

NAMES = ["moved", "x?y=1", "100%25", "a b#c", "a;b", "it's", "läufe"]


def track(storage: Path, number: int) -> None:
    """A trial with one file, and the sweep's own, into the storage's database."""
    file = storage / "sweep" / f"{number}.txt"
    file.parent.mkdir(exist_ok=True)
    file.write_text(str(number))
    tracker = MlflowTracker(
        storage / "sweep" / "tracking.db", sqlite_url(storage / "mlflow.db"), "e", "sweep"
    )
    tracker.sweep_started({}, {}, [])
    tracker.trial_started(number, f"trial-{number}", {}, {}, 0)
    tracker.trial_ended(number, "FINISHED", {}, {}, [Artifact(file)], 1)
    assert tracker.close(60) == 0


def files_of(storage: Path) -> dict[str, str]:
    """Name -> content of all artifacts, as MLflow finds them."""
    client = MlflowClient(sqlite_url(storage / "mlflow.db"))
    experiment = client.get_experiment_by_name("e")
    assert experiment is not None
    found = {}
    for run in client.search_runs([experiment.experiment_id]):
        for info in client.list_artifacts(run.info.run_id):
            path = Path(client.download_artifacts(run.info.run_id, info.path))
            found[info.path] = path.read_text()
    return found


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    lay_out(tmp_path / "runs")
    track(tmp_path / "runs", 1)
    return tmp_path / "runs"


@pytest.mark.parametrize("name", NAMES)
def test_a_moved_storage_has_its_artifacts_old_and_new(storage: Path, name: str) -> None:
    here = storage.parent / "results" / name
    here.parent.mkdir()
    shutil.move(storage, here)
    track(here, 2)
    assert files_of(here) == {"1.txt": "1", "2.txt": "2"}
    assert not storage.exists()
    assert [path.name for path in here.parent.iterdir()] == [name]


def test_a_copy_has_its_own(storage: Path) -> None:
    copy = storage.parent / "copy"
    shutil.copytree(storage, copy)
    track(copy, 2)
    assert files_of(copy) == {"1.txt": "1", "2.txt": "2"}
    assert files_of(storage) == {"1.txt": "1"}
    shutil.rmtree(storage)
    assert files_of(copy) == {"1.txt": "1", "2.txt": "2"}


def test_what_waits_for_delivery_is_found_after_a_move(storage: Path) -> None:
    file = storage / "sweep" / "3.txt"
    file.write_text("3")
    outbox = storage / "sweep" / "tracking.db"
    tracker = MlflowTracker(outbox, "http://127.0.0.1:9", "e", "sweep")
    tracker.sweep_updated({}, [Artifact(file)])
    assert tracker.close(0) == 2
    here = storage.rename(storage.parent / "moved")
    tracker = MlflowTracker(
        here / "sweep" / "tracking.db", sqlite_url(here / "mlflow.db"), "e", "sweep"
    )
    assert tracker.close(60) == 0
    assert files_of(here) == {"1.txt": "1", "3.txt": "3"}
    queue = Outbox(here / "sweep" / "tracking.db")
    assert queue.dead_letters() == []
    queue.close()


def test_locations_of_others_stay_as_they_are(storage: Path) -> None:
    client = MlflowClient(sqlite_url(storage / "mlflow.db"))
    theirs = {"a": "file:///their/artifacts", "b": "s3://bucket/mlartifacts"}
    for name, location in theirs.items():
        client.create_experiment(name, artifact_location=location)
    here = storage.rename(storage.parent / "moved")
    follow_database(here / "mlflow.db")
    client = MlflowClient(sqlite_url(here / "mlflow.db"))
    for name, location in theirs.items():
        found = client.get_experiment_by_name(name)
        assert found is not None
        assert found.artifact_location == location


def test_a_database_that_was_moved_alone_leaves_its_artifacts(storage: Path) -> None:
    alone = storage.parent / "alone"
    alone.mkdir()
    for file in storage.glob("mlflow.db*"):
        file.rename(alone / file.name)
    follow_database(alone / "mlflow.db")
    assert files_of(alone) == {"1.txt": "1"}


def test_a_run_that_only_has_our_key_is_not_taken(storage: Path) -> None:
    client = MlflowClient(sqlite_url(storage / "mlflow.db"))
    experiment = client.get_experiment_by_name("e")
    assert experiment is not None
    theirs = client.create_run(experiment.experiment_id, tags={"trial.key": "sweep/2"})
    track(storage, 2)
    after = client.get_run(theirs.info.run_id)
    assert after.info.status == "RUNNING"
    assert after.data.tags.keys() == theirs.data.tags.keys()
    assert files_of(storage) == {"1.txt": "1", "2.txt": "2"}
