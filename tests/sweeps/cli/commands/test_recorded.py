"""Reading a sweep from its storage, moved or kept in another database."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from typer.testing import Result

from peft_jobs import SpecError
from sweeps.records.reader import recorded_spec
from sweeps.results.recorded_sweep import Unreadable, open_sweep, open_sweeps
from sweeps.study.database import open_storage

Cli = Callable[..., Result]


def test_a_storage_may_be_moved(ended: Cli, folder: Path) -> None:
    before = open_sweep(folder / "runs", "waves").leaderboard()
    shutil.move(folder / "runs", folder / "elsewhere")
    sweep = open_sweep(folder / "elsewhere", "waves")
    assert sweep.leaderboard() == before
    assert sweep.spec.storage == str(folder / "elsewhere")


def test_credentials_that_are_not_recorded_must_be_given(ended: Cli, folder: Path) -> None:
    path = folder / "runs" / "waves" / "sweep.json"
    record = json.loads(path.read_text())
    record["sweep"]["study_url"] = "postgresql://***@db.example/optuna"
    path.write_text(json.dumps(record))
    with pytest.raises(SpecError, match="PEFT_SWEEPS_STUDY_URL"):
        open_sweep(folder / "runs", "waves")
    with pytest.raises(SpecError, match="PEFT_SWEEPS_STUDY_URL"):
        recorded_spec(folder / "runs", "waves")
    url = f"sqlite:///{folder / 'runs' / 'optuna.db'}"
    assert len(open_sweep(folder / "runs", "waves", url).trials().rows) >= 9
    assert recorded_spec(folder / "runs", "waves", (), url).study_url == url

    record["sweep"]["study_url"] = None
    record["sweep"]["tracking"] = {"uri": "https://***@mlflow.example"}
    path.write_text(json.dumps(record))
    with pytest.raises(SpecError, match=r"not recorded: give the URL with tracking\.uri=URL"):
        recorded_spec(folder / "runs", "waves")
    given = recorded_spec(folder / "runs", "waves", ["tracking.uri=https://me:pw@mlflow.example"])
    assert given.tracking.uri == "https://me:pw@mlflow.example"


def test_a_sweep_in_the_storages_own_database_ignores_the_url(ended: Cli, folder: Path) -> None:
    sweep = open_sweep(folder / "runs", "waves", "postgresql://nobody@nowhere/optuna")
    assert len(sweep.leaderboard().rows) == 9


def test_a_study_in_another_database_is_found_by_the_environment(
    cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PEFT_SWEEPS_STUDY_URL", f"sqlite:///{folder / 'central.db'}")
    assert cli("run", "waves.yaml", "budget.n_trials=2").exit_code == 0
    assert not (folder / "runs" / "optuna.db").exists()
    assert len(json.loads(cli("leaderboard", "waves", "--json").stdout)["rows"]) == 2


def test_a_study_that_is_gone_is_not_made_anew(ended: Cli, folder: Path) -> None:
    (folder / "runs" / "optuna.db").unlink()
    with pytest.raises(SpecError, match="is gone"):
        open_sweep(folder / "runs", "waves")
    assert not (folder / "runs" / "optuna.db").exists()


def test_one_bad_record_does_not_hide_the_others(ended: Cli, folder: Path) -> None:
    (folder / "runs" / "broken").mkdir()
    (folder / "runs" / "broken" / "sweep.json").write_text("{")
    broken, waves = open_sweeps(folder / "runs")
    assert isinstance(broken, Unreadable)
    assert "no JSON" in broken.reason
    assert not isinstance(waves, Unreadable)
    assert ended("list").exit_code == 0


def test_a_trial_that_is_just_ending_is_left_to_its_driver(ended: Cli, folder: Path) -> None:
    storage = open_storage(f"sqlite:///{folder / 'runs' / 'optuna.db'}")
    trial = optuna.load_study(study_name="waves", storage=storage).ask()
    trial.set_user_attr("result", {"state": "PRUNED", "kind": "weak"})
    sweep = open_sweep(folder / "runs", "waves")
    assert sweep.trials().rows[trial.number].state == "RUNNING"
    trial.set_constraint("memory", 0.5)  # Optuna raises if somebody has ended the trial
