"""What every method must satisfy, on every quantization scheme; examples one per variant."""

from typing import Any

import pytest
import torch
from peft import PeftModel

from peft_jobs.methods import METHODS

SCHEMES = ("none", "int8", "nf4", "fp4")
WIDTHS = {"q_proj": (64, 64), "v_proj": (64, 32), "up_proj": (64, 128), "down_proj": (128, 64)}
"""(in, out) features of the tiny Llama's linear modules."""
LAYERS = 2


def lora_count(r: int, *modules: str) -> int:
    return LAYERS * sum(r * (WIDTHS[name][0] + WIDTHS[name][1]) for name in modules)


EXAMPLES: list[tuple[str, dict[str, Any], int]] = [
    (
        "lora",
        {"adapter.r": 4, "adapter.lora_dropout": 0.1, "adapter.target_modules": "attention-qv"},
        lora_count(4, "q_proj", "v_proj"),
    ),
    (
        "lora",
        {"adapter.r": 3, "adapter.use_rslora": True, "adapter.target_modules": ["up_proj"]},
        lora_count(3, "up_proj"),
    ),
    (
        "lora",
        {
            "adapter.r": 2,
            "adapter.target_modules": ["down_proj"],
            "adapter.modules_to_save": ["lm_head"],
        },
        lora_count(2, "down_proj") + 64 * 128,
    ),
]


def test_every_method_has_an_example() -> None:
    assert {method for method, _, _ in EXAMPLES} == set(METHODS)


@pytest.fixture(params=range(len(EXAMPLES)), ids=lambda i: f"{EXAMPLES[i][0]}-{i}")
def example(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any], int]:
    return EXAMPLES[request.param]


@pytest.fixture(params=SCHEMES)
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def logits_of(model: Any) -> torch.Tensor:
    tokens = torch.arange(6, 24, device=model.device).view(2, 9)
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(input_ids=tokens).logits
    return logits


def test_training_changes_every_trainable_tensor_and_nothing_of_the_base(
    example: Any, scheme: str, llama_base: Any, trial: Any, take_steps: Any
) -> None:
    name, parameters, count = example
    base, method = llama_base(scheme), METHODS[name]
    before = base.state_hash()
    untouched = logits_of(base.model)
    classes = [type(module) for module in base.model.modules()]

    model = method.attach(base, trial({**parameters, "quantization.scheme": scheme}))
    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert sum(p.numel() for p in trainable.values()) == count
    assert all(p.dtype == torch.float32 for p in trainable.values())
    assert torch.equal(logits_of(model), untouched)  # B is zero
    initial = {n: p.detach().clone() for n, p in trainable.items()}
    take_steps(model, 3)
    unchanged = [n for n, p in trainable.items() if torch.equal(p, initial[n])]
    assert unchanged == []

    restored = method.detach(model)
    assert restored is base.model
    assert base.state_hash() == before
    assert [type(module) for module in restored.modules()] == classes
    assert not any(p.requires_grad or p.grad is not None for p in restored.parameters())
    assert not any(module.training for module in restored.modules())
    assert not any(module._forward_hooks for module in restored.modules())
    assert not any(module._forward_pre_hooks for module in restored.modules())
    assert not hasattr(restored, "peft_config")
    assert torch.equal(logits_of(restored), untouched)


def test_saved_adapter_scores_the_same_on_a_fresh_base(
    example: Any, scheme: str, llama_base: Any, trial: Any, take_steps: Any, tmp_path: Any
) -> None:
    from peft_jobs.base import load_base

    name, parameters, _ = example
    base, method = llama_base(scheme), METHODS[name]
    spec = trial({**parameters, "quantization.scheme": scheme})
    model = method.attach(base, spec)
    take_steps(model, 3)
    trained = logits_of(model)
    model.save_pretrained(tmp_path)
    method.detach(model)
    assert not torch.equal(trained, logits_of(base.model))

    fresh = load_base(spec.model, spec.quantization, spec.task)
    reloaded = PeftModel.from_pretrained(fresh.model, tmp_path)
    assert torch.equal(logits_of(reloaded), trained)
