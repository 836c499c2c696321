"""Predictions of packed steps."""

from typing import Any

import pytest

from peft_jobs.host.gpus import GPUS
from peft_jobs.host.prediction import Lengths
from peft_jobs.prediction.predict import predict
from peft_jobs.prediction.shapes import shape_key
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
    same |= {"training.weight_decay": 0.1}
    assert shape_key(spec.with_params(same)) == shape_key(spec)
    two, three = (spec.with_params({"adapter.loraplus_lr_ratio": ratio}) for ratio in (2, 3))
    assert shape_key(two) == shape_key(three) != shape_key(spec)
    for params in ({"adapter.r": 16}, {"adapter.lora_dropout": 0.1}, {"training.bf16": True}):
        assert shape_key(spec.with_params(params)) != shape_key(spec)


OUTPUTS = LAYERS * (5 * HIDDEN + 2 * INTER)


@pytest.mark.parametrize(
    ("adapter", "count", "frozen"),
    [
        ({"use_dora": True}, PARAMETERS + OUTPUTS, 0),
        ({"method": "ia3"}, LAYERS * (2 * HIDDEN + INTER), 0),
        (
            {"method": "vera", "r": 16, "target_modules": "all-linear"},
            LAYERS * 7 * 16 + OUTPUTS,
            16 * 2 * INTER,
        ),
        (
            {"method": "miss", "r": 16, "target_modules": "all-linear"},
            16 * OUTPUTS,
            16 * INTER,
        ),
    ],
    ids=["dora", "ia3", "vera", "miss"],
)
def test_other_forms_are_predicted(
    spec: TrialSpec, adapter: dict[str, Any], count: int, frozen: int
) -> None:
    tree = {**spec.model_dump(mode="json"), "adapter": adapter}
    tree["quantization"] = {"scheme": "nf4"}
    found = predict([TrialSpec.model_validate(tree)], GPUS["L4"], Lengths.of(64), slots=4)[0]
    assert found.trainable_parameters == count
    assert found.memory["optimizer"] == pytest.approx(8 * 4 * count, rel=0.01)
    assert found.memory["adapter"] == pytest.approx(4 * 4 * (count + frozen), rel=0.01)
