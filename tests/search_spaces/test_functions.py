"""The escape hatch: a Python function as a space."""

import sys
import types

import pytest

from search_spaces import FunctionSpace, RandomSuggest, SpaceError, load_space


@pytest.fixture
def module():
    """An importable module `my_space`, gone after the test."""
    module = types.ModuleType("my_space")
    sys.modules["my_space"] = module
    yield module
    del sys.modules["my_space"]


def test_a_function_draws_points_that_constraints_judge(module):
    module.points = lambda trial: {"adapter.r": trial.suggest_int("adapter.r", 4, 8)}
    space = load_space(
        {"function": "my_space:points", "constraints": ["adapter.r > 8", "adapter.x > 1"]}
    )
    space.check_names(())
    params = space.draw(RandomSuggest(0))
    assert params["adapter.r"] in range(4, 9)
    assert space.violated(params) == "adapter.r > 8"
    assert space.violated({"adapter.r": 9}) is None
    assert space.violated({"adapter.r": 9}, {"adapter.x": 0}) == "adapter.x > 1"
    assert space.size() is None
    assert space.describe().splitlines()[0] == "function: my_space:points"
    assert FunctionSpace.model_validate_json(space.to_json()) == space
    assert hash(space) == hash(load_space(space.model_dump()))
    assert len(space.fingerprint()) == 64
    with pytest.raises(SpaceError, match="my_space:points cannot be enumerated"):
        space.grid()


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([1], "my_space:points must return a dict, got list"),
        ({"Adapter": 1}, "my_space:points: a name must be dotted"),
        ({"adapter.r": {1}}, "my_space:points: must be a number, text"),
        ({"adapter.r": float("inf")}, "my_space:points: must be finite, got inf"),
    ],
)
def test_what_the_function_returns_must_be_params(module, returned, message):
    module.points = lambda trial: returned
    with pytest.raises(SpaceError) as raised:
        FunctionSpace(function="my_space:points").draw(RandomSuggest(0))
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("my_space:nothing", "cannot import my_space:nothing: "),
        ("no_such_module:points", "cannot import no_such_module:points: No module named"),
        ("my_space:__name__", "my_space:__name__ must be a function, got str"),
    ],
)
def test_a_function_that_cannot_be_called_is_refused_before_a_draw(module, function, message):
    with pytest.raises(SpaceError) as raised:
        FunctionSpace(function=function).check_names(())
    assert message in str(raised.value)


def test_the_name_must_say_module_and_function():
    with pytest.raises(ValueError, match="function\n"):
        load_space({"function": "my_space.points"})
