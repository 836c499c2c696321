"""How many modules each set of targets stands for, on the demo's base: three layers of Llama."""

from typing import Any

from peft_jobs.methods.matched_modules import matched_modules
from peft_jobs.spec import TrialSpec


def trial(**adapter: Any) -> TrialSpec:
    return TrialSpec.model_validate(
        {
            "model": "demo",
            "task": {"type": "causal_lm", "response": "{text}"},
            "data": {"train": "demo"},
            "adapter": adapter,
        }
    )


def test_modules_are_counted_for_each_choice_once() -> None:
    found = matched_modules(
        [
            trial(method="lora", target_modules="attention-qv", r=4),
            trial(method="lora", target_modules="attention-qv", r=8),
            trial(method="lora", target_modules=["q_proj"], layers_to_transform=[0, 2]),
            trial(method="lora", target_modules="all-linear"),
            trial(method="ln_tuning"),
            trial(method="prompt_tuning"),
        ]
    )
    assert [(each["targets"], each["modules"]) for each in found] == [
        ("attention-qv", 2 * 3),
        (["q_proj"], 2),
        ("all-linear", 7 * 3),
        ("all-norms", 2 * 3 + 1),
    ]
    assert found[0]["by_name"] == {"q_proj": 3, "v_proj": 3}


def test_what_the_base_does_not_have_is_left_out() -> None:
    assert matched_modules([trial(method="lora", target_modules=["no_such"])]) == []


def test_choices_that_are_the_same_modules_are_told() -> None:
    chosen = ["attention", "all-linear", "attention+mlp", "attention"]
    found = matched_modules([trial(method="lora", target_modules=name) for name in chosen])
    assert [(each["targets"], each["same_as"]) for each in found] == [
        ("attention", None),
        ("all-linear", None),
        ("attention+mlp", "all-linear"),
    ]
