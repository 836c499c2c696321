"""Predictions against what others have measured, and against what the field's tables say."""

import json
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import spearmanr

from peft_jobs.host.gpus import GPUS
from peft_jobs.host.prediction import Lengths
from peft_jobs.prediction.depth import depths, full_depth
from peft_jobs.prediction.fake_base import meta_base
from peft_jobs.prediction.predict import Whole, whole
from peft_jobs.prediction.roofline import seconds_of
from peft_jobs.prediction.solo_steps import Steps, solo_steps
from tests.support.fake_bases import compared, spec_on, write_config

LONGEST_TOKENS = 728
"""Of the comparison's longest batch: fitted, as its results do not tell."""
TOLERANCE = 0.03
MEAN_TOKENS = 280
"""Of its batches with their padding, for time: assumed, it does not tell them either."""
FIRST_ROWS = ("lora--llama-3.2-3B-rank32", "full-finetuning--llama-3.2-3B-lr_0.00001")
L40S = GPUS["L40S"]


@pytest.fixture(scope="module")
def comparison(shared: Path) -> dict[str, Any]:
    path = shared / "data" / "memory" / "peft_method_comparison.json"
    if not path.is_file():
        pytest.skip(f"no measured memory at {path}")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def predicted(
    comparison: dict[str, Any], row: dict[str, Any], folder: Path, tokens: int = LONGEST_TOKENS
) -> Whole:
    common = comparison["common"]
    base = write_config(folder, common["model_config"] | {"torch_dtype": "bfloat16"})
    training = {"per_device_train_batch_size": common["batch_size"], "optim": "adamw_torch"}
    spec = spec_on(base, training=training)
    lengths = Lengths.of(tokens)

    def run(depth: int | None) -> Steps:
        fake = meta_base(spec, "cuda", 2, depth)
        return solo_steps(spec, compared(row, fake), "cuda", lengths)

    config = meta_base(spec, "cuda", 2, 1).model.config
    config.num_hidden_layers = common["model_config"]["num_hidden_layers"]
    return whole(run, L40S, depths(config), full_depth(config))


def check(found: Whole, row: dict[str, Any]) -> None:
    assert found.trainable_parameters == row["trainable_parameters"]
    assert found.peak_bytes == pytest.approx(row["peak_reserved_bytes"], rel=TOLERANCE)


def test_memory_is_as_measured(comparison: dict[str, Any], tmp_path: Path) -> None:
    rows = [row for row in comparison["rows"] if row["name"] in FIRST_ROWS]
    assert len(rows) == len(FIRST_ROWS)
    for row in rows:
        check(predicted(comparison, row, tmp_path), row)


@pytest.mark.slow
def test_memory_is_as_measured_by_all_methods(comparison: dict[str, Any], tmp_path: Path) -> None:
    assert len(comparison["rows"]) >= 18
    for row in comparison["rows"]:
        check(predicted(comparison, row, tmp_path), row)


@pytest.mark.slow
def test_methods_take_as_much_longer_than_lora_as_was_measured(
    comparison: dict[str, Any], tmp_path: Path
) -> None:
    rows = {row["name"]: row for row in comparison["rows"]}
    lora = "lora--llama-3.2-3B-rank32"
    seconds = {
        name: seconds_of(predicted(comparison, row, tmp_path, MEAN_TOKENS).work, L40S)
        for name, row in rows.items()
    }
    measured = {name: row["train_seconds"] for name, row in rows.items()}
    assert spearmanr(list(seconds.values()), list(measured.values())).statistic > 0.8
    near = [n for n in rows if n.startswith(("lora", "ia3", "adalora", "delora", "vera"))]
    assert len(near) >= 8
    for name in near:
        told = seconds[name] / seconds[lora]
        assert told == pytest.approx(measured[name] / measured[lora], rel=0.25), name
