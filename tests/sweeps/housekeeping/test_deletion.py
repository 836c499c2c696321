"""A deleted sweep is gone everywhere, and no other sweep has lost anything."""

import shutil
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from mlflow import MlflowClient
from mlflow.entities import ViewType
from typer.testing import CliRunner

from peft_jobs import SpecError
from sweeps import open_sweep
from sweeps.cli.app import app
from sweeps.errors import Unavailable
from sweeps.housekeeping.deletion import delete_sweep
from sweeps.housekeeping.remains import remains_of
from sweeps.sqlite_urls import sqlite_url
from sweeps.tracking.artifact_root import follow_database


def runs_of(storage: Path) -> dict[str, int]:
    """How many runs each sweep has, deleted ones too."""
    follow_database(storage / "mlflow.db")
    client = MlflowClient(sqlite_url(storage / "mlflow.db"))
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(ids, run_view_type=ViewType.ALL)
    names = [run.data.tags["sweep"] for run in runs]
    return {name: names.count(name) for name in names}


def studies(storage: Path) -> list[str]:
    return optuna.get_all_study_names(f"sqlite:///{storage / 'optuna.db'}")


def test_study_runs_artifacts_and_folder_go_and_the_other_sweep_stays(storage: Path) -> None:
    before = open_sweep(storage, "other").leaderboard()
    assert runs_of(storage) == {"waves": 5, "other": 5}
    deleted = delete_sweep(remains_of(storage, "waves"))
    assert (deleted.trials, deleted.runs, deleted.kept) == (4, 5, None)
    assert deleted.bytes > 1000
    assert not (storage / "waves").exists()
    assert studies(storage) == ["other"]
    assert runs_of(storage) == {"other": 5}
    assert len([*(storage / "mlartifacts").iterdir()]) == 5
    assert open_sweep(storage, "other").leaderboard() == before
    with pytest.raises(SpecError, match="there is no sweep 'waves' in"):
        remains_of(storage, "waves")


def test_the_winner_s_adapter_may_stay(storage: Path) -> None:
    best = open_sweep(storage, "waves").leaderboard().best
    assert best is not None
    deleted = delete_sweep(remains_of(storage, "waves"), keep_best=True)
    assert deleted.kept == storage / "waves-best"
    kept = {path.name for path in (storage / "waves-best").iterdir()}
    assert kept == {"adapter_model.safetensors", "trial.json", "result.json"}
    shutil.rmtree(storage / "waves-best")
    (storage / "other-best").mkdir()
    with pytest.raises(SpecError, match="other-best is there already"):
        delete_sweep(remains_of(storage, "other"), keep_best=True)
    assert "other" in studies(storage)


@pytest.mark.parametrize("moved", [False, True])
def test_what_rm_rf_has_left_is_removed_too(storage: Path, moved: bool) -> None:
    shutil.rmtree(storage / "waves")
    if moved:
        storage = storage.rename(storage.parent / "moved")
    deleted = delete_sweep(remains_of(storage, "waves"))
    assert (deleted.trials, deleted.runs) == (4, 5)
    assert studies(storage) == ["other"]
    assert runs_of(storage) == {"other": 5}


def test_a_folder_whose_study_is_gone_is_removed(storage: Path) -> None:
    optuna.delete_study(study_name="waves", storage=f"sqlite:///{storage / 'optuna.db'}")
    assert delete_sweep(remains_of(storage, "waves")).runs == 5
    assert not (storage / "waves").exists()


def test_a_sweep_that_is_driven_is_not_deleted(storage: Path) -> None:
    code = (
        "import sys; from sweeps.study.database import open_storage; "
        "from sweeps.study.lease import Lease; "
        "Lease(open_storage(sys.argv[1]), 'waves').take(); print('up', flush=True); input()"
    )
    driver = subprocess.Popen(
        [sys.executable, "-c", code, f"sqlite:///{storage / 'optuna.db'}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert driver.stdout is not None
        assert driver.stdout.readline() == "up\n"
        with pytest.raises(SpecError, match=f"is being driven by process {driver.pid}"):
            delete_sweep(remains_of(storage, "waves"))
    finally:
        driver.communicate("\n")
    assert runs_of(storage)["waves"] == 5
    assert (storage / "waves" / "sweep.json").is_file()


def test_a_copy_does_not_take_the_original_s_study_along(storage: Path, tmp_path: Path) -> None:
    """A study in another database belongs to the storage from which it was driven last."""
    url = sqlite_url(tmp_path / "team.db")
    optuna.copy_study(
        from_study_name="waves",
        from_storage=f"sqlite:///{storage / 'optuna.db'}",
        to_storage=url,
    )
    study = optuna.load_study(study_name="waves", storage=url)
    study.set_user_attr("home", {"storage": str(storage), "machine": "here"})
    record = storage / "waves" / "sweep.json"
    record.write_text(record.read_text().replace('"study_url": null', f'"study_url": "{url}"'))
    shutil.copytree(storage, tmp_path / "copy")
    delete_sweep(remains_of(tmp_path / "copy", "waves"))
    assert not (tmp_path / "copy" / "waves").exists()
    assert optuna.get_all_study_names(url) == ["waves"]
    with pytest.raises(SpecError, match="there is no sweep 'waves' in"):
        remains_of(tmp_path / "copy", "waves", url)
    delete_sweep(remains_of(storage, "waves"))
    assert optuna.get_all_study_names(url) == []


def test_a_server_that_is_away_keeps_all_of_it_unless_its_runs_may_stay(storage: Path) -> None:
    record = storage / "waves" / "sweep.json"
    record.write_text(record.read_text().replace('"uri": null', '"uri": "http://127.0.0.1:9"'))
    with pytest.raises(Unavailable, match="the rest was not tried; --keep-runs leaves them"):
        delete_sweep(remains_of(storage, "waves"))
    assert "waves" in studies(storage)
    assert delete_sweep(remains_of(storage, "waves"), keep_runs=True).runs == 0
    assert not (storage / "waves").exists()


def test_the_command_asks_and_says_what_went(storage: Path) -> None:
    def cli(*words: str, answer: str | None = None):  # type: ignore[no-untyped-def]
        return CliRunner().invoke(app, [*words, "--storage", str(storage)], input=answer)

    refused = cli("delete", "waves")
    assert refused.exit_code == 2
    assert "this deletes the sweep 'waves': 4 trials, " in refused.stderr
    assert "say --yes" in refused.stderr
    assert "waves" in studies(storage)
    done = cli("delete", "waves", "--yes")
    assert done.exit_code == 0, done.output
    assert "Deleted waves: 4 trials, 5 MLflow runs, " in done.stderr
    assert cli("delete", "waves", "--yes").exit_code == 2


def test_list_tells_sizes_and_studies_without_a_folder(storage: Path) -> None:
    shutil.rmtree(storage / "waves")
    listed = CliRunner().invoke(app, ["list", "--storage", str(storage)])
    assert "waves has a study of 4 trials and no folder" in listed.stderr
    assert " MiB" in listed.stdout
