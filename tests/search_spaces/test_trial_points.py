"""Properties: a point whose names are a trial's paths, within its limits, makes a valid trial."""

import json

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from peft_jobs import TrialSpec
from search_spaces import RandomSuggest, load_space

BASE = TrialSpec.model_validate(
    {
        "model": "demo",
        "task": {"type": "causal_lm", "response": "{sentence}"},
        "data": {"train": "demo"},
    }
)


def some(*values):
    return st.lists(st.sampled_from(values), min_size=1, unique=True).map(
        lambda chosen: {"choices": chosen}
    )


@st.composite
def between(draw, low, high, **rest):
    """A float or int range inside [low, high]."""
    kind = st.integers if isinstance(low, int) else st.floats
    ends = sorted([draw(kind(low, high)), draw(kind(low, high))])
    return {"low": ends[0], "high": ends[1], **rest}


NAMES = {
    "adapter.r": between(1, 512, log=True) | some(1, 8, 64) | st.integers(1, 512),
    "adapter.lora_alpha": between(0.5, 512.0) | st.just({"expression": "2 * adapter.r"}),
    "adapter.lora_dropout": between(0.0, 0.9) | st.just(0),
    "adapter.target_modules": some("all-linear", "attention", ("q_proj", "v_proj")),
    "adapter.use_rslora": some(True, False) | st.booleans(),
    "adapter.bias": some("none", "all", "lora_only"),
    "quantization.scheme": some("none", "int8", "nf4", "fp4"),
    "training.learning_rate": between(1e-6, 1.0, log=True) | st.just("1e-4"),
    "training.weight_decay": between(0.0, 1.0),
    "training.per_device_train_batch_size": some(1, 4, 64) | between(1, 64),
    "training.lr_scheduler_type": some("linear", "cosine", "constant"),
    "training.warmup_steps": between(0.0, 0.9) | between(1, 100),
    "training.gradient_checkpointing": some(True, False),
    "seed": between(0, 2**32 - 1),
}
CONDITIONS = ("adapter.r >= 1", "training.bf16 or adapter.lora_alpha > 0", "not false", "true")


@st.composite
def spaces(draw):
    names = draw(st.lists(st.sampled_from(list(NAMES)), min_size=1, unique=True))
    parameters = {name: draw(NAMES[name]) for name in names}
    for name, item in parameters.items():
        if isinstance(item, dict) and draw(st.booleans()):
            choices = [text for text in CONDITIONS if name not in text]
            item["when"] = draw(st.sampled_from(choices))
    if "adapter.r" in parameters and isinstance(parameters["adapter.r"], dict):
        parameters["adapter.r"].pop("when", None)  # others depend on it
    return {"parameters": parameters}


def flat(spec):
    """Dotted leaves of the sections that a space reads."""
    tree = spec.model_dump(mode="json")
    return {
        f"{top}.{key}": v
        for top, part in tree.items()
        if isinstance(part, dict)
        for key, v in part.items()
    }


@settings(max_examples=100, deadline=None)
@given(raw=spaces(), seed=st.integers(0, 2**32))
def test_what_is_drawn_validates_and_is_what_the_trial_holds(raw, seed):
    space = load_space(raw)
    again = load_space(yaml.safe_load(yaml.safe_dump(space.model_dump(mode="json"))))
    base = flat(BASE)
    params = space.draw(RandomSuggest(seed), base)
    assert again.draw(RandomSuggest(seed), base) == params
    spec = BASE.with_params(params)
    held = {**flat(spec), "seed": spec.seed}
    for name, value in params.items():
        assert json.dumps(held[name]) in {json.dumps(form(value)) for form in forms(value)}
    assert BASE.with_params(params).fingerprint() == spec.fingerprint()


def forms(value):
    """How a spec may hold a value: numbers as floats, names sorted."""
    yield lambda v: v
    if isinstance(value, int) and not isinstance(value, bool):
        yield float
    if isinstance(value, list):
        yield sorted
