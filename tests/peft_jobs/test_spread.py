"""A base that accelerate places: on one device it must be the base that we place ourselves."""

from pathlib import Path

import pytest
import torch

from peft_jobs.base import load_base
from peft_jobs.spec import CausalLMSpec, ModelSpec, QuantizationSpec


@pytest.mark.parametrize("scheme", ["none", "nf4"])
def test_a_spread_base_is_the_same_base(tiny_llama_path: Path, scheme: str) -> None:
    model = ModelSpec(name_or_path=str(tiny_llama_path))
    quantization, task = QuantizationSpec(scheme=scheme), CausalLMSpec(response="{x}")
    placed = load_base(model, quantization, task)
    spread = load_base(model, quantization, task, spread=True)
    assert spread.fingerprint == placed.fingerprint
    tokens = torch.arange(12).reshape(2, 6)
    with torch.no_grad():
        same = torch.equal(spread.model(tokens).logits, placed.model(tokens).logits)
    assert same
    assert {p.device for p in spread.model.parameters()} == {placed.device}
