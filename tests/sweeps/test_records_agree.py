"""After a sweep the study, the MLflow runs and the files say the same of every trial."""

import json
from pathlib import Path
from typing import Any

import optuna
import pytest

from sweeps import build_sweep, open_sweep
from sweeps.run import launch

mlflow = pytest.importorskip("mlflow")

FAULTS = {2: "bug", 3: "oom", 5: "diverged", 6: "data"}
MLFLOW_STATUS = {"COMPLETE": "FINISHED", "PRUNED": "FINISHED", "FAIL": "FAILED"}


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished simulated sweep of 12 trials in which some fail, diverge or do not fit."""
    storage = tmp_path_factory.mktemp("storage")
    spec = build_sweep(
        {
            "name": "mixed",
            "model": "demo",
            "task": {"type": "causal_lm", "response": "{sentence}"},
            "data": {"train": "demo", "validation": "demo"},
            "space": {
                "parameters": {
                    "adapter.r": {"choices": [2, 4, 8]},
                    "adapter.lora_alpha": {"expression": "2 * adapter.r"},
                    "training.learning_rate": {"low": 1e-4, "high": 1e-1, "log": True},
                }
            },
            "budget": {"n_trials": 12, "max_samples": 900},
            "resources": {
                "backend": "inline",
                "engine": "simulated",
                "engine_options": {"faults": FAULTS},
            },
            "storage": str(storage),
        }
    )
    outcome = launch(spec)
    assert (outcome.status, outcome.undelivered) == ("complete", 0)
    return storage


@pytest.fixture(scope="module")
def runs(storage: Path) -> dict[int, Any]:
    """MLflow's child runs by trial number, read through MLflow's own client."""
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{storage / 'mlflow.db'}")
    (experiment,) = [e for e in client.search_experiments() if e.name == "peft-sweeps"]
    found = client.search_runs([experiment.experiment_id])
    children = [run for run in found if "mlflow.parentRunId" in run.data.tags]
    (parent,) = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert parent.info.status == "FINISHED"
    said = open_sweep(storage, "mixed").verdict().sentences()
    assert parent.data.tags["verdict"] == " ".join(said)
    assert all(f"* {sentence}\n" in parent.data.tags["mlflow.note.content"] for sentence in said)
    return {int(run.data.tags["trial.number"]): run for run in children}


@pytest.fixture(scope="module")
def trials(storage: Path) -> list[optuna.trial.FrozenTrial]:
    """The trials that were launched, read from the database without our code."""
    study = optuna.load_study(study_name="mixed", storage=f"sqlite:///{storage / 'optuna.db'}")
    turned_away = ("rejected", "duplicate")
    return [t for t in study.trials if t.user_attrs.get("kind") not in turned_away]


def test_every_state_and_kind_occurs(trials: list[optuna.trial.FrozenTrial]) -> None:
    assert len(trials) == 12
    assert {t.state.name for t in trials} == {"COMPLETE", "PRUNED", "FAIL"}
    kinds = {t.user_attrs["kind"] for t in trials}
    assert kinds == {None, "weak", "bug", "data", "out_of_memory", "diverged"}


def test_study_mlflow_and_files_agree(
    storage: Path, runs: dict[int, Any], trials: list[optuna.trial.FrozenTrial]
) -> None:
    assert sorted(runs) == [t.number for t in trials]
    folders = sorted((storage / "mixed" / "trials").iterdir())
    assert [int(folder.name) for folder in folders] == [t.number for t in trials]
    for trial, folder in zip(trials, folders, strict=True):
        run = runs[trial.number]
        result = json.loads((folder / "result.json").read_text())
        spec = json.loads((folder / "trial.json").read_text())
        assert result["state"] == trial.state.name == run.data.tags["trial.state"]
        for name, peak in result["memory"].items():
            gib = run.data.metrics[f"memory/{name.removesuffix('_bytes')}_gib"]
            assert run.data.metrics[f"memory/{name}"] == peak
            assert gib == pytest.approx(peak / 2**30, abs=6e-4)
        assert MLFLOW_STATUS[trial.state.name] == run.info.status
        assert result["kind"] == trial.user_attrs["kind"]
        assert run.data.tags["trial.kind"] == (result["kind"] or "complete")
        for name, value in trial.user_attrs["params"].items():
            section, field = name.split(".")
            assert spec[section][field] == value
            assert run.data.params[name] == str(spec[section][field])
        if trial.state.name == "COMPLETE":
            assert trial.value == result["metrics"]["validation/loss"]
            assert run.data.metrics["validation/loss"] == trial.value


def test_rungs_are_metrics_at_their_optimizer_steps(
    storage: Path, runs: dict[int, Any], trials: list[optuna.trial.FrozenTrial]
) -> None:
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{storage / 'mlflow.db'}")
    trial = next(t for t in trials if t.state.name == "COMPLETE")
    history = client.get_metric_history(runs[trial.number].info.run_id, "validation/loss")
    recorded = [trial.intermediate_values[rung] for rung in sorted(trial.intermediate_values)]
    assert [point.value for point in history] == [*recorded, trial.value]
    batch = 8
    expected = [-(-rung // batch) for rung in (100, 300, 900)]
    assert [point.step for point in history] == expected


def test_failed_trials_keep_their_traceback(
    storage: Path, trials: list[optuna.trial.FrozenTrial]
) -> None:
    for number in (n for n, fault in FAULTS.items() if fault in ("bug", "data")):
        folder = storage / "mixed" / "trials" / f"{number:04d}"
        result = json.loads((folder / "result.json").read_text())
        assert "simulated" in result["error"]
        assert (folder / "attempts" / "1" / "traceback.txt").read_text() == result["traceback"]
