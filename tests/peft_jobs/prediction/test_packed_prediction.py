"""Predictions of packed steps."""

from typing import Any

import pytest

from peft_jobs.host.gpus import GPUS
from peft_jobs.host.prediction import Lengths
from peft_jobs.prediction.predict import predict, shape_key
from peft_jobs.spec import TrialSpec

R, HIDDEN, INTER, LAYERS = 8, 128, 256, 3
"""Of the demo's base: four square products a layer, and three of its MLP."""
PARAMETERS = LAYERS * R * (4 * 2 * HIDDEN + 3 * (HIDDEN + INTER))


@pytest.fixture
def spec() -> TrialSpec:
    trial: dict[str, Any] = {
        "model": "demo",
        "task": {"type": "causal_lm", "response": "{text}"},
        "data": {"train": "demo"},
    }
    return TrialSpec.model_validate(trial)


def test_slots_multiply_state_and_not_launches(spec: TrialSpec) -> None:
    two, eight = (predict([spec], GPUS["L4"], Lengths.of(64), slots=k)[0] for k in (2, 8))
    for found in (two, eight):
        assert found.trainable_parameters == PARAMETERS
        assert found.memory["optimizer"] == pytest.approx(8 * found.slots * PARAMETERS, rel=1e-3)
    assert eight.launches <= 1.05 * two.launches
    assert eight.seconds_per_sample < two.seconds_per_sample


def test_trials_of_equal_shapes_are_run_once(spec: TrialSpec) -> None:
    same = {"adapter.lora_alpha": 64, "training.learning_rate": 1e-3, "seed": 5}
    assert shape_key(spec.with_params(same)) == shape_key(spec)
    for params in ({"adapter.r": 16}, {"adapter.lora_dropout": 0.1}, {"training.bf16": True}):
        assert shape_key(spec.with_params(params)) != shape_key(spec)
