"""Malformed spaces: each mistake has its place and says what must hold and what came."""

import contextlib
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from search_spaces import RandomSuggest, SearchSpace, SpaceError, load_space


def mistakes(raw):
    """The mistakes of a space as `place: message`."""
    with pytest.raises(ValidationError) as raised:
        load_space(raw)
    return [
        f"{'.'.join(map(str, line['loc']))}: {line['msg'].removeprefix('Value error, ')}"
        for line in raised.value.errors()
    ]


R = "parameters.adapter.r"


@pytest.mark.parametrize(
    ("parameter", "message"),
    [
        ({"low": 64, "high": 4}, f"{R}: low must be <= high, got low=64, high=4"),
        ({"low": 0.5, "high": 0.1}, f"{R}: low must be <= high, got low=0.5, high=0.1"),
        (
            {"low": 0.0, "high": 1.0, "log": True},
            f"{R}: low must be > 0 with log, got low=0.0, high=1.0",
        ),
        ({"low": 0, "high": 8, "log": True}, f"{R}: low must be >= 1 with log, got low=0, high=8"),
        (
            {"low": 0.1, "high": 1.0, "log": True, "step": 0.1},
            f"{R}: step must be left out with log, got step=0.1",
        ),
        (
            {"low": 1, "high": 9, "log": True, "step": 2},
            f"{R}: step must be left out with log, got step=2",
        ),
        ({"low": 1, "high": 9, "step": 0}, f"{R}: step must be > 0, got step=0"),
        (
            {"low": 4, "high": 64, "step": 8},
            f"{R}: step must divide high - low, got low=4, high=64, step=8; use high=60",
        ),
        (
            {"low": 0.0, "high": 0.12, "step": 0.05},
            f"{R}: step must divide high - low, got low=0.0, high=0.12, step=0.05; use high=0.1",
        ),
        ({"low": 0.0, "high": float("inf")}, f"{R}.high: Input should be a finite number"),
        ({"low": True, "high": 8}, f"{R}.low: must be a number, got the boolean true"),
        (
            {"type": "int", "low": 1, "high": 2.5},
            f"{R}.high: Input should be a valid integer, got a number with a fractional part",
        ),
        ({"low": 1, "high": 8, "log": "maybe"}, f"{R}.log: Input should be a valid boolean"),
        ({"type": "int", "low": 4}, f"{R}.high: Field required"),
        ({"choices": []}, f"{R}: choices must not be empty, got []"),
        ({"choices": [8, 8]}, f"{R}: choices must differ for Optuna, got 8 and 8"),
        ({"choices": [1, True]}, f"{R}: choices must differ for Optuna, got 1 and true"),
        (
            {"choices": [["a", "b"], '["a","b"]']},
            f'{R}: choices must differ for Optuna, got ["a","b"] and "[\\"a\\",\\"b\\"]"',
        ),
        (
            {"choices": [{"q": 1}]},
            f"{R}.choices.0: must be a number, text, true, false, null or a list of these, "
            "got dict",
        ),
        ({"value": float("nan")}, f"{R}.value: must be finite, got nan"),
        (
            {"type": "flaot", "low": 0, "high": 1},
            f"{R}: unknown type 'flaot'; did you mean 'float'? known: categorical, "
            "derived, fixed, float, int",
        ),
        (
            {"type": "int", "low": 1, "hihg": 8, "high": 8},
            f"{R}.hihg: unknown key 'hihg'; did you mean 'high'? known: high, log, low, step, "
            "type, when",
        ),
        (
            {"low": 1},
            f"{R}: needs type, low and high, choices, value or expression, got keys: low",
        ),
        ([8, 16], f"{R}: a list must say what it is: {{choices: [...]}} or {{value: [...]}}"),
        ({"expression": "2 *"}, f"{R}.expression: cannot read '2 *': invalid syntax"),
        (
            {"expression": "adapter.r + 1"},
            "parameters: a parameter must not depend on itself: adapter.r -> adapter.r",
        ),
        (
            {"low": 1, "high": 8, "when": "adapter.r > 2"},
            "parameters: a parameter must not depend on itself: adapter.r -> adapter.r",
        ),
        ({"value": 8, "when": "1 > 2"}, f"{R}.when: must be true somewhere, got '1 > 2'"),
    ],
)
def test_a_malformed_parameter_says_what_must_hold_and_what_came(parameter, message):
    assert mistakes({"parameters": {"adapter.r": parameter}}) == [message]


def test_all_mistakes_are_reported_at_once():
    raw = {
        "parameters": {
            "adapter.r": {"low": 64, "high": 4},
            "adapter.Alpha": 3,
            "adapter.lora_dropout": {"low": 0, "high": "much", "type": "float"},
        },
        "constraints": ["adapter.r >", "foo(1)"],
        "constraint": [],
    }
    assert [line.split(": ")[0] for line in mistakes(raw)] == [
        "parameters.adapter.r",
        "parameters.adapter.Alpha.[key]",
        "parameters.adapter.lora_dropout.high",
        "constraints.0",
        "constraints.1",
        "constraint",
    ]


def test_an_empty_space_is_an_error():
    assert mistakes({"parameters": {}}) == [
        "parameters: a space must have at least one parameter, got none"
    ]


def test_a_cycle_through_when_is_named():
    raw = {"a.b": {"choices": [1, 2], "when": "c.d > 1"}, "c.d": {"expression": "a.b + 1"}}
    assert mistakes({"parameters": raw}) == [
        "parameters: a parameter must not depend on itself: a.b -> c.d -> a.b"
    ]


def test_conditions_that_never_hold_are_errors():
    raw = {
        "parameters": {
            "adapter.r": {"choices": [4, 8]},
            "adapter.use_dora": {"choices": [True, False], "when": "adapter.r >= 16"},
        },
        "constraints": ["adapter.r < 64", "adapter.r > 64"],
    }
    assert mistakes(raw) == [
        "parameters.adapter.use_dora.when: must be true somewhere, got 'adapter.r >= 16'",
        "constraints.1: must allow some point, got 'adapter.r > 64'",
    ]


def test_unknown_names_are_answered_with_the_nearest():
    space = SearchSpace.model_validate(
        {
            "parameters": {
                "adapter.rr": {"choices": [4, 8]},
                "adapter.lora_alpha": {"expression": "2 * adapter.rank"},
            },
            "constraints": ["training.epoch < 3 or adapter.rr < 8"],
        }
    )
    known = {"adapter.r", "adapter.lora_alpha", "training.epochs"}
    with pytest.raises(SpaceError) as raised:
        space.check_names(known)
    lines = str(raised.value).splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("unknown parameter 'adapter.rr'; did you mean 'adapter.r'")
    assert lines[1].startswith("'2 * adapter.rank': unknown name 'adapter.rank'; did you mean")
    assert "unknown name 'training.epoch'; did you mean 'training.epochs'" in lines[2]
    space.check_names({*known, "adapter.rr", "adapter.rank", "training.epoch"})


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"preset": "qlra"}, "unknown preset 'qlra'; did you mean 'qlora' or 'lora'?"),
        (["adapter.r"], "a space must be a mapping, got list"),
    ],
)
def test_what_is_no_space_at_all_is_a_space_error(raw, message):
    with pytest.raises(SpaceError) as raised:
        load_space(raw)
    assert message in str(raised.value)


keys = st.sampled_from(
    ["low", "high", "step", "log", "choices", "value", "expression", "type", "when"]
)
words = st.sampled_from(["int", "float", "derived", "a.b", "a.b + 1", "1e-4", "1e99", "nan", "no"])
junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys | st.integers(), inner),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(["a.b", "c", "D", 5]), junk), junk)
def test_whatever_yaml_gives_either_loads_or_is_a_value_error(parameters, constraints):
    with contextlib.suppress(ValueError):
        space = load_space({"parameters": parameters, "constraints": constraints})
        space.describe()
        space.size()
        space.draw(RandomSuggest(0))


def test_space_error_survives_pickling():
    error = pickle.loads(pickle.dumps(SpaceError("no")))
    assert isinstance(error, ValueError)
    assert str(error) == "no"
