"""Points that a person gives: checked when they are read, encoded as Optuna stores them."""

import pytest
from pydantic import ValidationError

from search_spaces import SearchSpace, load_space

PARAMETERS = {
    "adapter.method": {"choices": ["lora", "ia3"]},
    "adapter.r": {"low": 4, "high": 64, "step": 4, "when": "adapter.method == 'lora'"},
    "adapter.lora_alpha": "2 * adapter.r",
    "adapter.lora_dropout": {"low": 0.0, "high": 0.3, "step": 0.1},
    "adapter.target_modules": {"choices": [["q_proj", "v_proj"], "all-linear"]},
    "training.learning_rate": {"low": 1e-5, "high": 1e-3, "log": True},
}


def read(*points):
    space = load_space({"parameters": PARAMETERS, "points_to_evaluate": list(points)})
    assert isinstance(space, SearchSpace)
    return space


def test_points_are_taken_in_their_order_and_encoded():
    space = read(
        {"adapter.r": 16, "adapter.target_modules": ["q_proj", "v_proj"]},
        {"training.learning_rate": "2e-4", "adapter.lora_dropout": 0.3},
        {},
    )
    assert space.given(0) == {"adapter.r": 16, "adapter.target_modules": '["q_proj","v_proj"]'}
    assert space.given(1) == {"training.learning_rate": 2e-4, "adapter.lora_dropout": 0.3}
    assert space.given(2) == {}
    last = space.describe().splitlines()[-3]
    assert last == 'first: {"adapter.r":16,"adapter.target_modules":["q_proj","v_proj"]}'
    assert SearchSpace.model_validate_json(space.to_json()) == space


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("adapter.r", 6, "must be int 4 to 64, step 4, got 6"),
        ("adapter.r", 68, "must be int 4 to 64, step 4, got 68"),
        ("adapter.r", 16.5, "must be int 4 to 64, step 4, got 16.5"),
        ("adapter.r", True, "must be int 4 to 64, step 4, got true"),
        ("adapter.lora_dropout", 0.25, "must be float 0.0 to 0.3, step 0.1, got 0.25"),
        ("training.learning_rate", 0.1, "must be float 1e-05 to 0.001, log, got 0.1"),
        ("training.learning_rate", "big", 'must be float 1e-05 to 0.001, log, got "big"'),
        ("adapter.method", "lore", 'must be one of "lora", "ia3", got "lore"'),
        ("adapter.lora_alpha", 32, "is not sampled: leave it out"),
        ("adapter.rank", 8, "unknown parameter 'adapter.rank'; did you mean 'adapter.r'"),
    ],
)
def test_a_value_that_the_parameter_cannot_have(name, value, message):
    with pytest.raises(ValidationError) as raised:
        read({}, {name: value})
    (line,) = raised.value.errors()
    assert line["loc"] == ("points_to_evaluate", 1, name)
    assert line["msg"].removeprefix("Value error, ").startswith(message)


def test_a_value_where_the_parameter_has_none():
    read({"adapter.r": 8})  # the method is sampled: it may be LoRA
    with pytest.raises(ValidationError, match="has no value here, as its `when` is false"):
        read({"adapter.method": "ia3", "adapter.r": 8})
