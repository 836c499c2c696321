"""The main job on real parts: NF4 base, LoRA, Trainer, Optuna, MLflow, leaderboard, export."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sweeps import build_sweep
from sweeps.exporters.export import Exported, export_trial
from sweeps.results.leaderboard import Leaderboard
from sweeps.run import launch

SWEEP: dict[str, Any] = {
    "name": "small",
    "model": "demo",
    "quantization": {"scheme": "nf4", "bnb_4bit_use_double_quant": True},
    "task": {"type": "causal_lm", "prompt": "{record}\n", "response": "{sentence}"},
    "data": {
        "train": "demo",
        "validation": "demo",
        "test": "demo",
        "max_length": 128,
        "validation_subset": 48,
    },
    "training": {"per_device_train_batch_size": 8, "lr_scheduler_type": "constant"},
    "space": {
        "parameters": {
            "adapter.r": {"choices": [2, 16]},
            "adapter.lora_alpha": {"expression": "2 * adapter.r"},
            "adapter.lora_dropout": {"choices": [0.0, 0.05]},
            "adapter.target_modules": {"choices": ["attention-qv", "all-linear"]},
            "training.learning_rate": {"low": 2e-3, "high": 2e-2, "log": True},
        }
    },
    "budget": {"n_trials": 4, "max_samples": 160, "num_rungs": 1},
    "resources": {"backend": "inline"},
}


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("storage")


@pytest.fixture(scope="module")
def board(storage: Path) -> Leaderboard:
    """A sweep of four real trials, run inline."""
    outcome = launch(build_sweep({**SWEEP, "storage": str(storage)}))
    assert (outcome.status, outcome.undelivered) == ("complete", 0)
    return outcome.leaderboard


@pytest.fixture(scope="module")
def exported(storage: Path, board: Leaderboard) -> Exported:
    return export_trial(storage, "small", to=("merged",))


def test_the_best_trial_beats_the_untouched_base(board: Leaderboard) -> None:
    assert board.best is not None
    assert board.best.value is not None
    assert board.baseline is not None
    assert board.best.value < board.baseline
    assert board.best is board.rows[0]


def test_rows_say_what_a_person_chooses_by(board: Leaderboard) -> None:
    best = board.best
    assert best is not None
    assert best.peak_memory_bytes is not None
    assert best.peak_memory_bytes > 50 * 2**20
    assert best.trainable_parameters is not None
    assert best.minutes > 0
    assert set(board.varying) <= set(SWEEP["space"]["parameters"])


def test_the_exported_adapter_scores_what_was_recorded(exported: Exported) -> None:
    assert exported.validation == pytest.approx(exported.recorded, rel=1e-5)
    assert exported.test is not None
    assert exported.test["test/loss"] > 0


def test_the_merged_model_scores_what_the_adapter_does(exported: Exported) -> None:
    assert exported.merged == pytest.approx(exported.validation, rel=1e-3)
    assert exported.merged_path is not None
    assert list(exported.merged_path.glob("*.safetensors"))


def test_the_model_card_says_where_each_figure_was_measured(exported: Exported) -> None:
    lines = (exported.path / "README.md").read_text().splitlines()
    rows = {
        line.split("|")[1].strip(): line.split("|")[2:-1] for line in lines if "/loss |" in line
    }
    assert exported.test is not None
    assert float(rows["validation/loss"][0]) == pytest.approx(
        exported.recorded["validation/loss"], rel=1e-5
    )
    assert rows["test/loss"][0].strip() == ""
    assert float(rows["test/loss"][1]) == pytest.approx(exported.test["test/loss"], rel=1e-5)


def test_an_export_again_repeats_the_first_figures(storage: Path, exported: Exported) -> None:
    assert export_trial(storage, "small") == exported


def test_an_export_refuses_a_folder_with_other_things(storage: Path, board: Leaderboard) -> None:
    out = storage / "mine"
    out.mkdir()
    (out / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match="holds something else"):
        export_trial(storage, "small", out=out)
    assert [path.name for path in out.iterdir()] == ["thesis.tex"]


def test_mlflows_adapter_gives_the_recorded_validation_loss(
    storage: Path, board: Leaderboard, tmp_path: Path
) -> None:
    mlflow = pytest.importorskip("mlflow")
    from peft_jobs.engines.solo.adapter_export import score_adapter

    assert board.best is not None
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{storage / 'mlflow.db'}")
    (experiment,) = [e for e in client.search_experiments() if e.name == "peft-sweeps"]
    number = str(board.best.number)
    (run,) = [
        run
        for run in client.search_runs([experiment.experiment_id])
        if run.data.tags.get("trial.number") == number
    ]
    adapter = client.download_artifacts(run.info.run_id, "adapter", str(tmp_path))
    config = client.download_artifacts(run.info.run_id, "config/trial.json", str(tmp_path))
    scored, _ = score_adapter(Path(config).read_text(), Path(adapter), storage / "cache", False)
    assert scored["validation/loss"] == pytest.approx(run.data.metrics["validation/loss"], rel=1e-5)


def test_a_trial_runs_again_alone_from_its_file(
    storage: Path, board: Leaderboard, tmp_path: Path
) -> None:
    assert board.best is not None
    trial = storage / "small" / "trials" / f"{board.best.number:04d}" / "trial.json"
    command = [sys.executable, "-m", "peft_jobs", "run", str(trial), "--out", str(tmp_path / "o")]
    done = subprocess.run(
        [*command, "--json"], capture_output=True, text=True, timeout=200, check=True
    )
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["metrics"]["validation/loss"] == pytest.approx(board.best.value, abs=1e-4)
