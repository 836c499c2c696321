"""Properties: every draw lies in its space, and nothing is lost through YAML or through Optuna."""

import inspect
import json
import math

import optuna
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from search_spaces import RandomSuggest, Suggest, load_space

optuna.logging.set_verbosity(optuna.logging.WARNING)

# No "e": text like "1e4" is read as the number that YAML 1.1 fails to see.
text = st.text(st.characters(codec="utf-8", exclude_characters="eE"), max_size=4)
scalars = st.none() | st.booleans() | st.integers(-9, 9) | st.floats(-1, 1) | text
values = scalars | st.lists(scalars, max_size=3)


def codes_differ(choices):
    return len({json.dumps(c) if isinstance(c, list) else c for c in choices}) == len(choices)


@st.composite
def ints(draw):
    low, count = draw(st.integers(1, 50)), draw(st.integers(1, 20))
    if draw(st.booleans()):
        return {"type": "int", "low": low, "high": low + count, "log": True}
    step = draw(st.integers(1, 5))
    return {"type": "int", "low": low, "high": low + step * count, "step": step}


@st.composite
def floats(draw):
    low, count = draw(st.integers(1, 1000)), draw(st.integers(1, 50))
    if draw(st.booleans()):
        return {"low": low / 1000, "high": float(low + count), "log": draw(st.booleans())}
    return {"low": low / 1000, "high": (low + 50 * count) / 1000, "step": 0.05}


@st.composite
def spaces(draw):
    """The file form of a space: `p.rank`, parameters of every kind, some under conditions on it."""
    kinds = st.one_of(
        ints(), floats(),
        st.lists(values, min_size=1, max_size=4).filter(codes_differ).map(
            lambda choices: {"choices": choices}
        ),
        values.map(lambda value: {"value": value}),
        st.just({"expression": "3 * p.rank - 1"}),
    )  # fmt: skip
    parameters = {f"p.x{i}": item for i, item in enumerate(draw(st.lists(kinds, max_size=5)))}
    rank = draw(ints())
    for item in parameters.values():
        if draw(st.booleans()):
            item["when"] = f"p.rank > {rank['low']}"
    return {"parameters": {**parameters, "p.rank": rank}}


def lies_in(raw, params):
    """Whether `params` is a point of the space `raw` (of the shape made by `spaces`)."""
    rank = params["p.rank"]
    for name, item in raw["parameters"].items():
        active = "when" not in item or rank > raw["parameters"]["p.rank"]["low"]
        if active != (name in params):
            return False
        if active and not is_value_of(item, params[name], rank):
            return False
    return params.keys() <= raw["parameters"].keys()


def is_value_of(item, value, rank):
    if "choices" in item:
        return json.dumps(value) in [json.dumps(choice) for choice in item["choices"]]
    if "value" in item:
        return json.dumps(value) == json.dumps(item["value"])
    if "expression" in item:
        return value == 3 * rank - 1
    if type(value) is not (int if item.get("type") == "int" else float):
        return False
    steps = (value - item["low"]) / item.get("step", 1)
    on_grid = "step" not in item or math.isclose(steps, round(steps), abs_tol=1e-6)
    return on_grid and item["low"] <= value <= item["high"] + 1e-9


@settings(max_examples=60, deadline=None)
@given(raw=spaces(), seed=st.integers(0, 2**32))
def test_random_draws_lie_in_the_space(raw, seed):
    space, suggest = load_space(raw), RandomSuggest(seed)
    for _ in range(5):
        assert lies_in(raw, space.draw(suggest))


@settings(max_examples=30, deadline=None)
@given(raw=spaces(), seed=st.integers(0, 2**31))
def test_optuna_draws_lie_in_the_space_and_come_back_from_the_stored_trial(raw, seed):
    space = load_space(raw)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    trial = study.ask()
    params = space.draw(trial)
    assert lies_in(raw, params)
    stored = study.trials[0].params
    assert json.loads(json.dumps(stored)) == stored
    again = space.draw(optuna.trial.FixedTrial(stored))
    assert json.dumps(again) == json.dumps(params)


@settings(max_examples=60, deadline=None)
@given(raw=spaces())
def test_a_space_survives_yaml_and_json(raw):
    space = load_space(raw)
    text = yaml.safe_dump(space.model_dump(mode="json"), sort_keys=False)
    for form in (yaml.safe_load(text), json.loads(space.to_json())):
        again = load_space(form)
        assert again == space
        assert again.draw(RandomSuggest(0)) == space.draw(RandomSuggest(0))


@pytest.mark.parametrize("method", ["suggest_float", "suggest_int", "suggest_categorical"])
def test_optunas_trial_has_the_signatures_of_suggest(method):
    ours, optunas = (inspect.signature(getattr(of, method)) for of in (Suggest, optuna.Trial))
    assert [(p.name, p.kind, p.default) for p in ours.parameters.values()] == [
        (p.name, p.kind, p.default) for p in optunas.parameters.values()
    ]


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('studies') / 'optuna.db'}"


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(raw=spaces(), seed=st.integers(0, 2**31))
def test_a_point_comes_back_from_a_real_database_and_can_be_enqueued(database, raw, seed):
    space = load_space(raw)
    sampler = optuna.samplers.RandomSampler(seed=seed)
    study = optuna.create_study(storage=optuna.storages.RDBStorage(database), sampler=sampler)
    first = study.ask()
    params = space.draw(first)
    found = optuna.load_study(
        study_name=study.study_name, storage=optuna.storages.RDBStorage(database), sampler=sampler
    )
    stored = found.trials[0].params
    assert json.dumps(space.draw(optuna.trial.FixedTrial(stored))) == json.dumps(params)
    again = optuna.trial.Trial(found, found.trials[0]._trial_id)
    assert json.dumps(space.draw(again)) == json.dumps(params)
    found.enqueue_trial(stored)
    second = found.ask()
    assert json.dumps(space.draw(second)) == json.dumps(params)
    assert second.number == 1
