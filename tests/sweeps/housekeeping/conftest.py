"""A storage with two tracked sweeps; the winners have adapters."""

import json
import shutil
from pathlib import Path

import optuna
import pytest
import yaml

from sweeps import build_sweep
from sweeps.run import launch
from tests.support.mlflow_database import lay_out
from tests.sweeps.cli.conftest import SWEEP


@pytest.fixture(scope="session")
def _made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    storage = tmp_path_factory.mktemp("housekeeping") / "runs"
    lay_out(storage)
    for name in ("waves", "other"):
        tree = yaml.safe_load(SWEEP) | {"name": name, "storage": str(storage), "tracking": {}}
        outcome = launch(build_sweep(tree | {"budget": {"n_trials": 4, "max_samples": 900}}))
        assert outcome.undelivered == 0
        best = outcome.leaderboard.best
        assert best is not None
        adapter = storage / name / "trials" / f"{best.number:04d}" / "adapter"
        adapter.mkdir()
        (adapter / "adapter_model.safetensors").write_bytes(b"w" * 1000)
        study = optuna.load_study(study_name=name, storage=f"sqlite:///{storage / 'optuna.db'}")
        trial = study.get_trials()[best.number]
        result = trial.user_attrs["result"] | {"adapter": f"trials/{best.number:04d}/adapter"}
        change_result(storage / "optuna.db", trial._trial_id, result)
    return storage


def change_result(database: Path, trial: int, result: dict[str, object]) -> None:
    """Write a result into a trial that has ended."""
    import sqlite3

    with sqlite3.connect(database) as connection:
        connection.execute(
            "UPDATE trial_user_attributes SET value_json = ? WHERE trial_id = ? AND key = 'result'",
            (json.dumps(result), trial),
        )
    connection.close()


@pytest.fixture
def storage(_made: Path, tmp_path: Path) -> Path:
    """The storage, for one test to spoil."""
    copy = Path(shutil.copytree(_made, tmp_path / "runs"))
    for name in ("waves", "other"):
        study = optuna.load_study(study_name=name, storage=f"sqlite:///{copy / 'optuna.db'}")
        study.set_user_attr("home", {"storage": str(copy), "machine": "here"})
    return copy
