"""Shares of weights that are quantized: planned without weights, loaded, and counted in files."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig
from transformers.pytorch_utils import Conv1D

from peft_jobs.base.architecture import skeleton
from peft_jobs.base.loading import load_base
from peft_jobs.base.weight_shares import planned_shares, weight_shares
from peft_jobs.methods.left_out import left_out
from peft_jobs.spec import (
    CausalLMSpec,
    ModelSpec,
    QuantizationSpec,
    Seq2SeqSpec,
    SequenceClassificationSpec,
)
from peft_jobs.spec.adapters import LoraSpec
from tests.peft_jobs.conftest import NUM_TOKENS, save_tokenizer

CAUSAL = CausalLMSpec(response="{text}")
CLASSES = SequenceClassificationSpec(type="sequence_classification", text="{text}", label="label")
PAIRS = Seq2SeqSpec(type="seq2seq", source="{a}", target="{b}")
WIDE = {
    "vocab_size": NUM_TOKENS,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pad_token_id": 0,
}
T5 = {
    "vocab_size": NUM_TOKENS,
    "d_model": 64,
    "d_ff": 128,
    "d_kv": 16,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
}
GPT2 = {"vocab_size": NUM_TOKENS, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}
MIXTURE = {**WIDE, "num_key_value_heads": 2, "num_local_experts": 4}
BASES: dict[str, tuple[str, dict[str, Any], Any]] = {
    "llama": ("LlamaForCausalLM", WIDE, CAUSAL),
    "llama, tied": ("LlamaForCausalLM", {**WIDE, "tie_word_embeddings": True}, CAUSAL),
    "gpt2": ("GPT2LMHeadModel", GPT2, CAUSAL),
    "mixtral": ("MixtralForCausalLM", MIXTURE, CAUSAL),
    "t5": ("T5ForConditionalGeneration", T5, PAIRS),
    "bert": ("BertForSequenceClassification", WIDE, CLASSES),
}
SCHEMES = ("nf4", "int8")


@pytest.fixture(params=BASES)
def base(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Any]:
    kind, sizes, task = BASES[request.param]
    model = getattr(transformers, kind)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model(model.config_class(**sizes)).save_pretrained(tmp_path)
    save_tokenizer(tmp_path, bert=kind.startswith("Bert"))
    return tmp_path, task


@pytest.mark.parametrize("scheme", SCHEMES)
def test_shares_are_those_of_the_files_and_of_plain_linear_layers(
    scheme: str, base: tuple[Path, Any]
) -> None:
    folder, task = base
    model, quantization = ModelSpec(name_or_path=str(folder)), QuantizationSpec(scheme=scheme)
    planned = planned_shares(model, quantization, task)
    loaded = load_base(model, quantization, task)
    assert planned == weight_shares(loaded.model)
    assert planned is not None
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        in_file = sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118
    assert planned.num_weights == in_file
    plain = getattr(transformers, task.AUTO_CLASS).from_config(AutoConfig.from_pretrained(folder))
    heads = ("lm_head", "classifier", "score")
    in_float32 = tuple(plain._keep_in_fp32_modules or ())  # `wo` of T5
    linear = [
        module.weight.numel()
        for name, module in plain.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and not name.endswith((*heads, *in_float32))
    ]
    assert planned.num_quantized == sum(linear)
    assert planned.num_quantized + sum(planned.left.values()) == planned.num_weights
    assert loaded.quantization["num_quantized"] == planned.num_quantized


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_experts_that_stay_as_they_are_are_told(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kind, sizes, task = BASES[name]
    model = getattr(transformers, kind)
    model(model.config_class(**sizes)).save_pretrained(tmp_path)
    save_tokenizer(tmp_path, bert=False)
    with caplog.at_level(logging.WARNING):
        load_base(ModelSpec(name_or_path=str(tmp_path)), QuantizationSpec(scheme="nf4"), task)
    told = [record.getMessage() for record in caplog.records if "quantizes" in record.getMessage()]
    if name == "llama":
        assert told == []
    else:
        # 2 layers of q, o 64 x 64 and k, v 64 x 32; 2 x 4 experts of 3 x 64 x 128
        assert "nf4 quantizes 24,576 of" in told[0]
        assert "experts.gate_up_proj 131,072" in told[0]
        assert "experts.down_proj 65,536" in told[0]


def test_a_set_of_targets_tells_what_it_leaves_out(tmp_path: Path) -> None:
    transformers.MixtralConfig(**MIXTURE).save_pretrained(tmp_path)
    model = ModelSpec(name_or_path=str(tmp_path))
    (told,) = left_out(skeleton(model, CAUSAL), LoraSpec())
    total = (
        2 * NUM_TOKENS * 64 + 5 * 64 + 2 * (2 * 64 * 64 + 2 * 64 * 32 + 4 * 64 + 4 * 3 * 64 * 128)
    )
    share = 2 * (4 * 64 + 4 * 3 * 64 * 128)
    assert f"{share:,} of {total:,} weights ({100 * share / total:.1f} %)" in told
    assert "experts.down_proj, experts.gate_up_proj" in told
    named = LoraSpec(target_parameters=["experts.gate_up_proj", "experts.down_proj"])
    assert left_out(skeleton(model, CAUSAL), named) == []  # but for the routers
    assert left_out(skeleton(model, CAUSAL), LoraSpec(target_modules=["q_proj"])) == []
    assert left_out(skeleton(model, CAUSAL), LoraSpec(target_modules="attention")) == []


def test_a_set_tells_of_towers_that_no_text_reaches(tmp_path: Path) -> None:
    text = {**WIDE, "head_dim": 16, "num_key_value_heads": 2}
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    transformers.Gemma3Config(
        text_config=text,
        vision_config={**vision, "num_attention_heads": 2, "image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
    ).save_pretrained(tmp_path)
    model = ModelSpec(name_or_path=str(tmp_path))
    (told,) = left_out(skeleton(model, CAUSAL), LoraSpec(target_modules="attention"))
    # q, k, v, out, fc1, fc2 of 2 layers; out_proj, fc1, fc2 of the tower's pooling head
    assert told == "15 linear modules that no text reaches (in model.vision_tower)"


def test_nothing_is_left_out_of_a_plain_decoder(llama_base: Any) -> None:
    assert left_out(llama_base("nf4").model, LoraSpec()) == []
