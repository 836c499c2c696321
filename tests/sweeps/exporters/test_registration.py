"""The recommended adapter in MLflow's registry: it loads back, scores the same, versions stay."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient, artifacts

from peft_jobs import SpecError
from peft_jobs.demo import BASE
from peft_jobs.engines.solo.adapter_export import score_adapter
from sweeps import build_sweep, export_trial, open_sweep
from sweeps.exporters.registration import register_export
from sweeps.run import launch
from sweeps.tracking.artifact_root import follow_database
from tests.support.mlflow_database import lay_out

SWEEP: dict[str, Any] = {
    "name": "one",
    "model": "demo",
    "task": {"type": "causal_lm", "prompt": "{record}\n", "response": "{sentence}"},
    "data": {"train": "demo", "validation": "demo", "max_length": 64, "validation_subset": 16},
    "space": {"parameters": {"training.learning_rate": {"choices": [1e-3, 2e-3]}}},
    "sampler": "grid",
    "pruner": "none",
    "budget": {"n_trials": 2, "max_samples": 32},
    "resources": {"backend": "inline"},
}


def test_a_champion_loads_back_scores_the_same_and_is_succeeded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = tmp_path / "runs"
    lay_out(storage)
    assert launch(build_sweep({**SWEEP, "storage": str(storage)})).status == "complete"
    sweep = open_sweep(storage, "one")
    uri = sweep.folder.tracking_url
    made = []
    for number in (1, 0, 0):
        exported = export_trial(storage, "one", number)
        made.append(register_export(sweep, number, exported.path, "records"))
    assert [(one.version, one.is_new) for one in made] == [(1, True), (2, True), (2, False)]

    client = MlflowClient(uri)
    champion = client.get_model_version_by_alias("records", "champion")
    assert (champion.version, champion.tags["trial.number"]) == (2, "0")
    assert champion.tags["base_model"] == str(BASE)
    assert {v.version for v in client.search_model_versions("name='records'")} == {1, 2}

    moved = tmp_path / "moved"
    shutil.move(storage, moved)
    follow_database(moved / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{moved / 'mlflow.db'}")
    for name, number in (("models:/records/1", 1), ("models:/records@champion", 0)):
        out = tmp_path / str(number)
        folder = Path(artifacts.download_artifacts(name, dst_path=str(out)))
        files = {path.name for path in folder.iterdir()}
        assert {"adapter_config.json", "tokenizer.json", "README.md", "trial.json"} <= files
        assert [path.name for path in folder.rglob("*.safetensors")] == [
            "adapter_model.safetensors"
        ]
        spec = (folder / "trial.json").read_text()
        found, _ = score_adapter(spec, folder, tmp_path / "cache", test=False)
        record = json.loads((moved / "one/exports" / f"trial-000{number}/export.json").read_text())
        assert found == pytest.approx(record["recorded"], rel=1e-6)


def test_a_sweep_that_is_not_in_mlflow_is_refused(tmp_path: Path) -> None:
    off = {"tracking": {"enabled": False}, "storage": str(tmp_path / "runs")}
    budget = {"budget": {"n_trials": 1, "max_samples": 16}}
    assert launch(build_sweep({**SWEEP, **off, **budget})).status == "complete"
    exported = export_trial(tmp_path / "runs", "one")
    with pytest.raises(SpecError, match="'one' is not in MLflow"):
        register_export(open_sweep(tmp_path / "runs", "one"), 0, exported.path, "records")
