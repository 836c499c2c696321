"""Properties: whatever stands in a sweep file gives a sweep or clear lines, and soon."""

import contextlib
import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sweeps import build_sweep, load_sweep
from sweeps.spec.yaml_file import SweepFileError

GOOD: dict[str, Any] = {
    "name": "junk",
    "model": {"name_or_path": "demo", "dtype": "auto"},
    "quantization": {"scheme": "nf4", "bnb_4bit_compute_dtype": "auto"},
    "adapter": {"method": "lora", "r": 8, "target_modules": ["q_proj"], "use_rslora": False},
    "task": {"type": "causal_lm", "prompt": "{record} ", "response": "{sentence}"},
    "data": {"train": {"path": "demo"}, "validation": 0.1, "max_length": 64, "subset": 100},
    "training": {"learning_rate": 1e-3, "per_device_train_batch_size": 8, "bf16": False},
    "evaluation": {"per_device_eval_batch_size": 16},
    "space": {
        "parameters": {
            "adapter.r": {"choices": [4, 8]},
            "adapter.lora_alpha": "2 * adapter.r",
            "adapter.lora_dropout": {"low": 0.0, "high": 0.5, "step": 0.1, "when": "adapter.r > 4"},
            "training.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
        },
        "constraints": ["adapter.r * training.learning_rate < 1"],
    },
    "objective": {"metric": "validation/loss", "direction": "minimize"},
    "constraints": {"minutes": 10},
    "sampler": {"type": "tpe", "n_startup_trials": 5},
    "pruner": {"type": "patient", "patience": 1, "wrapped_pruner": {"type": "median"}},
    "budget": {"n_trials": 3, "max_samples": 900, "rungs": [100, 300], "timeout": 60},
    "resources": {"backend": "inline", "engine": "simulated", "engine_options": {"num_slots": 1}},
    "tracking": {"enabled": True, "uri": "http://localhost:5000", "experiment": "x"},
    "storage": "runs",
    "study_url": "sqlite:///x.db",
    "seed": 1,
}
names = st.sampled_from(
    [*GOOD, "trial", "type", "low", "high", "choices", "preset", "function", "path"]
)
words = st.sampled_from(
    ["", "demo", "no", "1e400", "nan", "a.b", "{x", "x" * 5000, "\0", "\ud800", "~nobody/x", "../",
     "sqlite://", "http://[", "s3://x", "2 ** 9 ** 9", "__import__('os')", "lambda: 1", "os:getpid"]
)  # fmt: skip
scalars = (
    st.none() | st.booleans() | st.integers() | st.integers(-(10**400), 10**400)
    | st.floats() | st.text(max_size=5) | words | st.dates() | st.binary(max_size=3)
)  # fmt: skip
junk = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names | scalars, inner, max_size=4),
    max_leaves=8,
)
FAST = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of everything in the tree."""
    if isinstance(node, dict | list):
        inner = node.items() if isinstance(node, dict) else enumerate(node)
        found = [place for key, value in inner for place in places(value, (*path, key))]
        return [path, *found] if path else found
    return [path]


@FAST
@given(place=st.sampled_from(places(GOOD)), value=junk)
def test_a_good_file_with_junk_somewhere(place: tuple[Any, ...], value: Any) -> None:
    tree = copy.deepcopy(GOOD)
    node = tree
    for key in place[:-1]:
        node = node[key]
    node[place[-1]] = value
    check(tree)


@FAST
@given(tree=st.dictionaries(names | st.text(max_size=3), junk, max_size=6))
def test_a_file_of_junk(tree: dict[str, Any]) -> None:
    check(tree)
    check({**GOOD, **tree})


def check(tree: dict[str, Any]) -> None:
    """A sweep, or lines of which each says where."""
    problems = []
    try:
        build_sweep(tree)
    except SweepFileError as error:
        problems = error.problems
        if not problems:
            raise
    assert all(": " in line for line in problems)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("junk") / "junk.yaml"


@FAST
@given(text=st.text() | st.text(alphabet="-[]{}:,&*!|>'\"%@#? \n\tab1", max_size=60))
def test_a_file_of_any_text(path: Path, text: str) -> None:
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with contextlib.suppress(SweepFileError):
        load_sweep(path)


@FAST
@given(text=st.text(max_size=40))
def test_an_override_of_any_text(path: Path, text: str) -> None:
    path.write_text(yaml.safe_dump(GOOD))
    for key in ("", "budget.n_trials=", "space.parameters.adapter.r="):
        with contextlib.suppress(SweepFileError):
            load_sweep(path, [key + text])
