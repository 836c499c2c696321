"""What a text reaches: noted without weights, against hooks on models that truly run."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from peft_jobs.base.architecture import skeleton
from peft_jobs.base.text_reach import unreached_modules
from peft_jobs.errors import SpecError
from peft_jobs.methods.placement import check_places_without_weights
from peft_jobs.spec import CausalLMSpec, ModelSpec
from peft_jobs.spec.adapters import BottleneckSpec, LnTuningSpec, LoraSpec

CAUSAL = CausalLMSpec(response="{text}")
TEXT = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 1, "moe_intermediate_size": 32}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
BASES: dict[str, tuple[dict[str, Any], str | None]] = {
    "llama": (TEXT, None),
    "gemma3": (
        {
            "text_config": {**TEXT, "head_dim": 16},
            "vision_config": VISION,
            "mm_tokens_per_image": 4,
        },
        r"model\.(vision_tower|multi_modal_projector)\b",
    ),
    "git": (
        {**TEXT, "vision_config": VISION},
        r"git\.(image_encoder|visual_projection)\b",
    ),
    "got_ocr2": (
        {
            "text_config": TEXT,
            "vision_config": {
                "hidden_size": 32,
                "output_channels": 16,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "image_size": 32,
                "mlp_dim": 64,
                "global_attn_indexes": [1],
            },
        },
        r"model\.(vision_tower|multi_modal_projector)\b",
    ),
    "qwen3_moe": ({**TEXT, **EXPERTS, "head_dim": 16}, None),
    "mixtral": ({**TEXT, "num_local_experts": 8, "num_experts_per_tok": 1}, None),
    "mamba": ({"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 128}, r"\.dt_proj$"),
}
"""By architecture: its size, and the linear modules that no text reaches."""


@pytest.fixture
def base(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[ModelSpec, str | None]:
    sizes, unreached = BASES[request.param]
    AutoConfig.for_model(request.param, **sizes).save_pretrained(tmp_path)
    return ModelSpec(name_or_path=str(tmp_path)), unreached


def linear(model: nn.Module) -> set[str]:
    return {n for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D)}


@pytest.mark.parametrize("base", BASES, indirect=True)
def test_what_a_text_reaches_is_what_runs_and_gets_a_gradient(
    base: tuple[ModelSpec, str | None],
) -> None:
    model, expected = base
    noted = unreached_modules(skeleton(model, CAUSAL)) & linear(skeleton(model, CAUSAL))
    torch.manual_seed(0)
    real = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model.name_or_path))
    called: set[str] = set()
    for name in linear(real):
        module = real.get_submodule(name)
        module.register_forward_pre_hook(lambda *_, name=name: called.add(name))
    tokens = torch.randint(3, 100, (2, 8))
    real(input_ids=tokens).logits.sum().backward()
    assert noted == linear(real) - called
    found = {name for name in linear(real) if expected and re.search(expected, name)}
    assert noted == found
    for name in noted:
        weight = real.get_submodule(name).weight
        assert "dt_proj" in name or weight.grad is None or not weight.grad.any()


@pytest.mark.parametrize("base", ["gemma3", "git", "got_ocr2"], indirect=True)
@pytest.mark.parametrize(
    "adapter",
    [
        LoraSpec(target_modules="all-linear"),
        LoraSpec(target_modules=".*"),
        LnTuningSpec(method="ln_tuning"),
        BottleneckSpec(method="bottleneck"),
    ],
    ids=["all-linear", "pattern", "norms", "blocks"],
)
def test_adapters_leave_out_what_no_text_reaches(
    base: tuple[ModelSpec, str | None], adapter: Any
) -> None:
    model, expected = base
    places = check_places_without_weights(model, CAUSAL, adapter)
    assert places
    assert not [name for name in places if re.search(str(expected), name)]


@pytest.mark.parametrize("base", ["gemma3"], indirect=True)
def test_a_name_that_only_towers_have_is_refused(base: tuple[ModelSpec, str | None]) -> None:
    model, _ = base
    with pytest.raises(SpecError, match=r"'fc1' matches only modules that no text .*\(model"):
        check_places_without_weights(model, CAUSAL, LoraSpec(target_modules="fc1"))


def test_an_adapter_on_a_layer_whose_weight_is_taken_past_it_is_never_trained() -> None:
    torch.manual_seed(0)
    real = AutoModelForCausalLM.from_config(AutoConfig.for_model("mamba", **BASES["mamba"][0]))
    model = get_peft_model(real, LoraConfig(target_modules=["dt_proj", "in_proj"]))
    tokens = torch.randint(3, 100, (2, 8))
    model(input_ids=tokens, labels=tokens).loss.backward()
    grads = {n: p.grad for n, p in model.named_parameters() if "lora_B" in n}
    assert {grad is None for name, grad in grads.items() if "dt_proj" in name} == {True}
    assert {grad is None for name, grad in grads.items() if "in_proj" in name} == {False}


def test_noting_leaves_the_outline_as_it_was(tmp_path: Path) -> None:
    transformers.LlamaConfig(**TEXT).save_pretrained(tmp_path)
    outline = skeleton(ModelSpec(name_or_path=str(tmp_path)), CAUSAL)
    assert not any("forward" in vars(module) for module in outline.modules())
    assert {parameter.device.type for parameter in outline.parameters()} == {"meta"}
