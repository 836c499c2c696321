"""Other tools' names are answered with ours, at the level where ours stands."""

from collections.abc import Callable
from typing import Any

import pytest

from peft_jobs import TrialSpec
from peft_jobs.spec.dotted import paths_of
from sweeps import SweepSpec, build_sweep
from sweeps.spec.other_names import meant, other_names
from sweeps.spec.yaml_file import SweepFileError, override

Tree = Callable[..., dict[str, Any]]


def told_of(tree: dict[str, Any], text: str) -> str:
    """The line about the key that the override `text` sets, its known keys cut off."""
    override(tree, text)
    with pytest.raises(SweepFileError) as caught:
        build_sweep(tree)
    (line,) = caught.value.problems
    return line.partition(" known:")[0]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "training.lr=1e-4",
            "training.lr: unknown key 'lr' in training; did you mean 'learning_rate'?",
        ),
        ("lr=1e-4", "lr: unknown key 'lr'; did you mean 'training.learning_rate'?"),
        (
            "learning_rate=1e-4",
            "learning_rate: unknown key 'learning_rate'; did you mean 'training.learning_rate'?",
        ),
        ("lora_r=8", "lora_r: unknown key 'lora_r'; did you mean 'adapter.r'?"),
        ("adapter.rank=8", "adapter.rank: unknown key 'rank' in adapter; did you mean 'r'?"),
        (
            "data.batch_size=8",
            "data.batch_size: unknown key 'batch_size' in data; "
            "did you mean 'training.per_device_train_batch_size'?",
        ),
        (
            "evaluation.batch_size=8",
            "evaluation.batch_size: unknown key 'batch_size' in evaluation; "
            "did you mean 'per_device_eval_batch_size'?",
        ),
        (
            "training.num_epochs=2",
            "training.num_epochs: unknown key 'num_epochs' in training; "
            "did you mean 'budget.num_train_epochs'?",
        ),
        ("early_terminate=x", "early_terminate: unknown key 'early_terminate'; did you mean 'pru"),
        (
            "space.parameters.training.lr={choices: [1.0e-4]}",
            "space: unknown parameter 'training.lr'; did you mean 'training.learning_rate'?",
        ),
        (
            "space.parameters.lora_r={choices: [4]}",
            "space: unknown parameter 'lora_r'; did you mean 'adapter.r'?",
        ),
        (
            "space.constraints=['rank <= 8']",
            "space: 'rank <= 8': unknown name 'rank'; did you mean 'adapter.r'?",
        ),
    ],
)
def test_a_name_of_another_tool_is_answered_with_ours(tree: Tree, text: str, told: str) -> None:
    assert told_of(tree(), text).startswith(told)


def test_the_method_s_own_field_is_named_where_lora_s_is_none() -> None:
    known = ("method", "r", "vera_dropout")
    assert meant(("adapter", "dropout"), known) is None  # `vera_dropout` is near by its letters
    assert meant(("adapter", "lora_rank"), known) == "r"


def test_names_mean_what_there_is_and_are_no_keys_themselves() -> None:
    ours = {*paths_of(TrialSpec), *paths_of(SweepSpec)}
    means = {path for paths in other_names().values() for path in paths}
    assert len(means) > 60
    assert means - ours == set()
    top = {*TrialSpec.model_fields, *SweepSpec.model_fields}
    assert top & other_names().keys() == set()
