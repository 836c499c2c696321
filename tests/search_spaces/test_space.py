"""A declared space: shorthands, drawing, conditions, constraints, enumeration, identity."""

import json
import pickle

import optuna
import pytest
import yaml

from search_spaces import RandomSuggest, SearchSpace, SpaceError, load_space

FILE = """
parameters:
  adapter.lora_alpha: {type: derived, expression: "2 * adapter.r"}
  adapter.r: {type: int, low: 4, high: 64, log: true}
  training.learning_rate: {type: float, low: 1e-4, high: 1e-2, log: true}
  adapter.lora_dropout: {type: float, low: 0.0, high: 0.1, step: 0.05}
  adapter.target_modules: {type: categorical, choices: [attention-qv, null, [q_proj, v_proj]]}
  adapter.method: {type: fixed, value: lora}
  adapter.use_rslora: {type: categorical, choices: [true, false], when: "adapter.r >= 32"}
constraints:
  - "adapter.r * 2 <= 64"
"""


class Answers:
    """Suggests what it is told, by name, and the first or lowest value otherwise."""

    def __init__(self, **answers):
        self.answers = {name.replace("__", "."): value for name, value in answers.items()}
        self.asked = []

    def suggest_float(self, name, low, high, *, step=None, log=False):
        self.asked.append(name)
        return self.answers.get(name, low)

    suggest_int = suggest_float

    def suggest_categorical(self, name, choices):
        self.asked.append(name)
        return self.answers.get(name, choices[0])


def space_of(constraints=(), **parameters):
    named = {name.replace("__", "."): value for name, value in parameters.items()}
    return SearchSpace.model_validate({"parameters": named, "constraints": constraints})


def test_the_file_form_is_drawn_in_order_of_dependence():
    space = load_space(yaml.safe_load(FILE))
    assert space.names()[:3] == ("adapter.r", "adapter.lora_alpha", "training.learning_rate")
    answers = Answers(adapter__r=32, adapter__target_modules='["q_proj","v_proj"]')
    assert space.draw(answers) == {
        "adapter.r": 32,
        "adapter.lora_alpha": 64,
        "training.learning_rate": 1e-4,
        "adapter.lora_dropout": 0.0,
        "adapter.target_modules": ["q_proj", "v_proj"],
        "adapter.method": "lora",
        "adapter.use_rslora": True,
    }


def test_shorthands_mean_what_they_spell_out():
    short = space_of(
        a={"choices": [1, 2]}, b={"low": 1, "high": 2}, c={"low": 1, "high": 2.0},
        d={"low": "1e-4", "high": "1e-2"}, e=3, f=None, g="all-linear", h={"value": [1]},
        i={"expression": "b + 1"}, j__k={"low": 1, "high": 2}, l="2 * j.k", m="data/train.json",
    )  # fmt: skip
    assert short == space_of(
        a={"type": "categorical", "choices": [1, 2]}, b={"type": "int", "low": 1, "high": 2},
        c={"type": "float", "low": 1, "high": 2}, d={"type": "float", "low": 1e-4, "high": 1e-2},
        e={"type": "fixed", "value": 3}, f={"type": "fixed", "value": None},
        g={"type": "fixed", "value": "all-linear"}, h={"type": "fixed", "value": [1]},
        i={"type": "derived", "expression": "b + 1"}, j__k={"type": "int", "low": 1, "high": 2},
        l={"type": "derived", "expression": "2 * j.k"},
        m={"type": "fixed", "value": "data/train.json"},
    )  # fmt: skip


def test_an_exponent_that_yaml_reads_as_text_is_a_number():
    raw = yaml.safe_load("{parameters: {a: {choices: [1e-4, 3e-4]}, b: 2e-5, c: 1e-4x}}")
    assert load_space(raw).draw(Answers()) == {"a": 1e-4, "b": 2e-5, "c": "1e-4x"}


def test_an_inactive_parameter_is_absent_and_never_asked():
    space = space_of(r={"low": 1, "high": 64}, s={"low": 1, "high": 9, "when": "r > 8"})
    answers = Answers(r=8)
    assert space.draw(answers) == {"r": 8}
    assert answers.asked == ["r"]


def test_what_reads_an_inactive_parameter_is_inactive_or_does_not_apply():
    space = space_of(
        ["s < 5", "r > 0 or s < 5"],
        r={"low": 1, "high": 64},
        s={"low": 1, "high": 9, "when": "r > 8"},
        derived={"expression": "2 * s"},
        lazy={"expression": "2 * s if r > 8 else 0"},
        conditional={"value": 1, "when": "s > 0"},
    )
    params = space.draw(Answers(r=1), base={"s": 7})
    assert params == {"r": 1, "lazy": 0}
    assert space.violated(params, base={"s": 7}) is None
    params = space.draw(Answers(r=9, s=6))
    assert params == {"r": 9, "s": 6, "derived": 12, "lazy": 12, "conditional": 1}
    assert space.violated(params) == "s < 5"


def test_a_factor_that_reads_an_inactive_parameter_is_an_error_and_drops_nothing():
    rate = {"low": 1.0, "high": 2.0, "times": "8 / s"}
    parameters = {"r": {"low": 1, "high": 64}, "s": {"low": 1, "high": 9, "when": "r > 8"}}
    space = space_of(**parameters, rate=rate)
    assert space.draw(Answers(r=9, s=4, rate=1.5))["rate"] == 3.0
    with pytest.raises(SpaceError, match=r"^rate: times '8 / s' reads s, which has no value"):
        space.draw(Answers(r=1, rate=1.5))
    guarded = space_of(**parameters, rate={**rate, "times": "8 / s if r > 8 else 1"})
    assert guarded.draw(Answers(r=1, rate=1.5)) == {"r": 1, "rate": 1.5}
    gone = space_of(**parameters, rate={**rate, "when": "s > 0"})
    assert gone.draw(Answers(r=1)) == {"r": 1}


def test_other_names_are_read_from_the_base():
    space = space_of(
        ["adapter.r * model.layers <= 64"],
        adapter__r={"low": 1, "high": 64},
        adapter__lora_alpha={"expression": "adapter.r * model.layers"},
    )
    base = {"model.layers": 8}
    params = space.draw(Answers(adapter__r=9), base)
    assert params["adapter.lora_alpha"] == 72
    assert space.violated(params, base) == "adapter.r * model.layers <= 64"
    assert space.violated({"adapter.r": 8}, base) is None
    with pytest.raises(SpaceError, match=r"adapter\.lora_alpha: unknown name 'model\.layers'"):
        space.draw(Answers())


def test_a_list_of_the_base_may_be_a_tuple():
    space = space_of(a={"value": 1, "when": "targets == ['q', 'v']"})
    assert space.draw(Answers(), {"targets": ("q", "v")}) == {"a": 1}


def test_drawn_lists_are_not_shared_with_the_space():
    space = space_of(a={"value": [1]}, b={"choices": [[1], [2]]})
    params = space.draw(Answers())
    params["a"].append(2)
    params["b"].append(2)
    assert space.draw(Answers()) == {"a": [1], "b": [1]}


def test_size_counts_the_grid_and_is_none_for_a_continuum():
    finite = space_of(
        a={"low": 4, "high": 64, "log": True}, b={"low": 0.0, "high": 0.3, "step": 0.1},
        c={"choices": [[1], None]}, d=3, e={"expression": "2 * a"},
    )  # fmt: skip
    assert finite.size() == 61 * 4 * 2
    assert finite.grid() == {
        "a": list(range(4, 65)),
        "b": [0.0, 0.1, 0.2, 0.3],
        "c": ["[1]", None],
    }
    continuous = space_of(a__b={"low": 0.0, "high": 1.0})
    assert continuous.size() is None
    with pytest.raises(SpaceError, match=r"a\.b must be finite for a grid: give it a step"):
        continuous.grid()
    assert space_of(a={"low": 1.0, "high": 1.0}, b=1).grid() == {"a": [1.0]}


def test_optunas_grid_sampler_visits_every_point():
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = space_of(
        a={"low": 1, "high": 5, "step": 2}, b={"low": 0.0, "high": 0.2, "step": 0.1},
        c={"choices": [["q"], None, True]},
    )  # fmt: skip
    study = optuna.create_study(sampler=optuna.samplers.GridSampler(space.grid(), seed=0))
    points = {json.dumps(space.draw(study.ask())) for _ in range(space.size())}
    assert len(points) == space.size() == 27


def test_describe_says_everything_in_one_line_each():
    assert load_space(yaml.safe_load(FILE)).describe().splitlines() == [
        "adapter.r: int 4 to 64, log",
        "adapter.lora_alpha: = 2 * adapter.r",
        "training.learning_rate: float 0.0001 to 0.01, log",
        "adapter.lora_dropout: float 0.0 to 0.1, step 0.05",
        'adapter.target_modules: one of "attention-qv", null, ["q_proj","v_proj"]',
        'adapter.method: "lora"',
        "adapter.use_rslora: one of true, false, when adapter.r >= 32",
        "constraint: adapter.r * 2 <= 64",
    ]


def test_a_space_is_frozen_hashable_and_survives_json_and_pickle():
    space = load_space(yaml.safe_load(FILE))
    assert load_space(json.loads(space.to_json())) == space
    assert SearchSpace.model_validate_json(space.to_json()).names() == space.names()
    assert pickle.loads(pickle.dumps(space)) == space
    assert len({space, load_space(yaml.safe_load(FILE))}) == 1
    with pytest.raises(ValueError, match="frozen"):
        space.constraints = ()


def test_the_fingerprint_is_of_the_content_and_ignores_order():
    one, two = {"low": 1, "high": 2}, {"choices": [True]}
    fingerprint = space_of(a=one, b=two).fingerprint()
    assert len(fingerprint) == 64
    assert space_of(b=two, a=one).fingerprint() == fingerprint
    assert space_of(a=one, b={"choices": [1]}).fingerprint() != fingerprint
    assert space_of(["a > 1"], a=one, b=two).fingerprint() != fingerprint


def test_random_draws_are_seeded_and_keyed_by_name():
    a, b = {"low": 0.0, "high": 1.0}, {"low": 1, "high": 10**6, "log": True}
    both, alone = space_of(a=a, b=b), space_of(b=b)
    first, second = RandomSuggest(7), RandomSuggest(7)
    draws = [both.draw(first) for _ in range(5)]
    assert len({draw["a"] for draw in draws}) == 5
    assert [alone.draw(second)["b"] for _ in range(5)] == [draw["b"] for draw in draws]
    assert both.draw(RandomSuggest(8)) != draws[0]


def test_log_draws_are_uniform_in_the_logarithm():
    suggest = RandomSuggest(0)
    floats = [suggest.suggest_float("a", 1e-4, 1e-2, log=True) for _ in range(2000)]
    ints = [suggest.suggest_int("b", 1, 100, log=True) for _ in range(2000)]
    assert 0.45 < sum(value < 1e-3 for value in floats) / 2000 < 0.55
    # P(int < 10) = log(9.5 / 0.5) / log(100.5 / 0.5) = 0.555
    assert 0.51 < sum(value < 10 for value in ints) / 2000 < 0.60
