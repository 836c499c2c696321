"""Bases of true shapes with random weights, made and quantized on the device, and random rows."""

import gc
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from bitsandbytes.nn.modules import Linear4bit, Params4bit
from datasets import Dataset
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen2Config

from peft_jobs.base.loading import Base
from peft_jobs.base.quantization import settle
from peft_jobs.data.labels import Labels
from peft_jobs.data.tokenized import TokenizedData
from peft_jobs.spec import QuantizationSpec

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 128,
        "vocab_size": 512,
    },
    "0.5B": {
        "hidden_size": 896,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "intermediate_size": 4864,
        "vocab_size": 151936,
    },
    "1.5B": {
        "hidden_size": 1536,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "intermediate_size": 8960,
        "vocab_size": 151936,
    },
    "7B": {
        "hidden_size": 3584,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "intermediate_size": 18944,
        "vocab_size": 152064,
    },
}
"""The `config.json` of Qwen2.5-0.5B, -1.5B and -7B."""
TIED = ("tiny", "0.5B", "1.5B")
LENGTH = 1024
"""Longest row: a step of more tokens has several."""
SUPERVISED = 4
"""One in so many tokens, the last ones of a row, as of a response after its prompt."""


def make_base(shape: str, device: torch.device) -> Base:
    """A random Qwen2 of the shape on `device`, its linear layers but the head in NF4."""
    config = Qwen2Config(
        **SHAPES[shape], tie_word_embeddings=shape in TIED, use_cache=False, pad_token_id=0
    )
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with torch.device(device), torch.random.fork_rng():
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            config, dtype=dtype
        )
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear) and name != "lm_head":
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, quantized(layer, dtype, device))
    model.requires_grad_(False).train(False)
    settle(model, QuantizationSpec(scheme="nf4"))
    gc.collect()
    gc.freeze()  # as before a base is loaded
    tokenizer: Any = SimpleNamespace(pad_token_id=0, eos_token_id=0)
    return Base(
        model, tokenizer, device, {}, {}, fingerprint=f"random {shape}", key=shape, contents={}
    )


def quantized(layer: nn.Linear, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """The layer in NF4 without double quantization, computing in `dtype`."""
    made = Linear4bit(  # type: ignore[no-untyped-call]
        layer.in_features,
        layer.out_features,
        bias=layer.bias is not None,
        compute_dtype=dtype,
        compress_statistics=False,
        quant_type="nf4",
        device="meta",
    )
    made.weight = Params4bit(
        layer.weight.data,
        requires_grad=False,
        compress_statistics=False,
        quant_type="nf4",
        module=made,
    )
    made.bias = layer.bias
    return made.to(device)


def let_go() -> None:
    """Give back the memory of a base that nothing uses any more."""
    gc.unfreeze()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def make_data(tokens: int, vocabulary: int) -> TokenizedData:
    """Random rows of exactly min(tokens, LENGTH) tokens."""
    length = min(tokens, LENGTH)
    source = torch.Generator().manual_seed(0)

    def rows(num: int) -> Dataset:
        ids = torch.randint(1, vocabulary, (num, length), generator=source).tolist()
        cut = length - length // SUPERVISED
        labels = [[-100] * cut + row[cut:] for row in ids]
        return Dataset.from_dict({"input_ids": ids, "labels": labels, "num_bytes": [length] * num})

    return TokenizedData(
        train=rows(64),
        validation=rows(2),
        test=None,
        labels=Labels(),
        fingerprints={},
        dropped={},
        numbers={"train": range(1, 65), "validation": range(1, 3)},
    )


def shape_sizes(shape: str) -> Iterator[int]:
    """Parameters, tensor by tensor, before quantization."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            Qwen2Config(**SHAPES[shape], tie_word_embeddings=shape in TIED)
        )
    return (parameter.numel() for parameter in model.parameters())
