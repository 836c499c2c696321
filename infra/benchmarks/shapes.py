"""Table `gpu`: random weights of true shapes, made and quantized on the device.

Valid for speed, memory and the distance to solo, never for quality. The engines are the product's;
only what they find resident is made here, so no files and no network are needed.
"""

import argparse
import copy
import tempfile
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import bitsandbytes as bnb
import torch
from arms import Arm, auto, looped, packed, solo
from cells import Cells, measure
from datasets import Dataset
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen2Config

from peft_jobs.base import Base, this_device
from peft_jobs.quantized import settle
from peft_jobs.solo import SoloEngine
from peft_jobs.spec import QuantizationSpec, TrialSpec
from peft_jobs.tokenized import TokenizedData

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


class Made:
    """What stays resident: a base that was made here, and rows of one length."""

    def __init__(self, base: Base, data: TokenizedData, cache_dir: str) -> None:
        self.base, self.data, self.cache_dir = base, data, cache_dir

    def get(self, spec: TrialSpec, phases: Any) -> tuple[Base, TokenizedData]:
        return self.base, self.data

    def verify(self) -> None:
        """Hashing billions of weights after each trial is not what is measured."""


def run_all(options: argparse.Namespace) -> None:
    """The cells of all shapes until the time is spent; what was not reached is printed."""
    deadline = time.monotonic() + options.seconds
    device = this_device()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    run = options.record.begin("gpu", options.command, device=name)
    for shape in options.shape:
        with tempfile.TemporaryDirectory() as cache:
            for tokens, setting, measured in one_shape(options, shape, cache, deadline):
                options.record.add(run, {**setting, "tokens": tokens}, measured)
                print(shape, tokens, measured, flush=True)


def one_shape(
    options: argparse.Namespace, shape: str, cache: str, deadline: float
) -> Iterator[tuple[int, dict[str, Any], dict[str, Any]]]:
    """All measurements of one shape; K by K in each number of tokens, as time allows."""
    device = this_device()
    base = make_base(shape, device)
    setting = {
        "model": f"{shape} (random)",
        "parameters": int(sum(shape_sizes(shape))),
        "quantization": "nf4",
    }
    fast = make_fast(base) if "B2" in options.arms else None
    kinds = {
        "B1": (solo, base),
        "B2": (solo, fast),
        "B4": (looped, base),
        "B5": (packed, base),
        "B5-auto": (auto, base),
    }
    for tokens in options.tokens:
        data = make_data(tokens, SHAPES[shape]["vocab_size"])
        arms = []
        for name in options.arms:
            make, its_base = kinds[name]
            engine = SoloEngine(cache, threads=options.threads)
            assert its_base is not None
            engine._resident = Made(its_base, data, cache)  # type: ignore[assignment]
            arms.append(Arm(name, make, engine))
        spec = trial(max(1, tokens // LENGTH), options.r)
        for slots in options.slots:
            if time.monotonic() > deadline:
                print(f"not reached: {shape}, {tokens} tokens, K={slots} and more", flush=True)
                return
            cells = Cells(spec, [slots], options.repeats, options.arm_seconds, 4, compared=4)
            for measured in measure(cells, arms):
                yield tokens, setting, measured


def trial(rows: int, r: int) -> TrialSpec:
    """A trial of `rows` rows a step; model and data are what is resident."""
    return TrialSpec.model_validate(
        {
            "model": "random",
            "quantization": "nf4",
            "adapter": {"r": r, "lora_alpha": r, "target_modules": "all-linear"},
            "task": {"type": "causal_lm", "response": "{text}"},
            "data": {"train": "random.jsonl"},
            "training": {
                "per_device_train_batch_size": rows,
                "learning_rate": 1e-3,
                "bf16": torch.cuda.is_available(),
            },
        }
    )


def make_base(shape: str, device: torch.device) -> Base:
    """A random Qwen2 of the shape on `device`, its linear layers but the head in NF4."""
    config = Qwen2Config(
        **SHAPES[shape], tie_word_embeddings=shape in TIED, use_cache=False, pad_token_id=0
    )
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with torch.device(device), torch.random.fork_rng():
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear) and name != "lm_head":
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, quantized(layer, dtype, device))
    model.requires_grad_(False).train(False)
    settle(model, QuantizationSpec(scheme="nf4"))
    tokenizer: Any = SimpleNamespace(pad_token_id=0)
    return Base(model, tokenizer, device, {}, fingerprint=f"random {shape}", key=shape)


def quantized(layer: nn.Linear, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """The layer in NF4, computing in `dtype`."""
    made = bnb.nn.Linear4bit(
        layer.in_features,
        layer.out_features,
        bias=layer.bias is not None,
        compute_dtype=dtype,
        quant_type="nf4",
        device="meta",
    )
    made.weight = bnb.nn.Params4bit(
        layer.weight.data, requires_grad=False, quant_type="nf4", module=made
    )
    made.bias = layer.bias
    return made.to(device)


def make_fast(base: Base) -> Base:
    """The best that a trial alone can have (B2): weights dequantized once, compiled layers."""
    model = copy.deepcopy(base.model)
    for name, layer in list(model.named_modules()):
        if isinstance(layer, bnb.nn.Linear4bit):
            parent, _, child = name.rpartition(".")
            weight = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
            plain = nn.Linear(layer.in_features, layer.out_features, False, device="meta")
            plain.weight = nn.Parameter(weight.to(layer.compute_dtype), requires_grad=False)
            plain.bias = layer.bias
            setattr(model.get_submodule(parent), child, plain)
    layers: Any = model.model
    for block in layers.layers:
        block.compile()
    return Base(model, base.tokenizer, base.device, {}, base.fingerprint, base.key)


def make_data(tokens: int, vocabulary: int) -> TokenizedData:
    """Random rows of exactly min(tokens, LENGTH) tokens."""
    length = min(tokens, LENGTH)
    source = torch.Generator().manual_seed(0)

    def rows(num: int) -> Dataset:
        ids = torch.randint(1, vocabulary, (num, length), generator=source).tolist()
        cut = length - length // SUPERVISED
        labels = [[-100] * cut + row[cut:] for row in ids]
        return Dataset.from_dict({"input_ids": ids, "labels": labels, "num_bytes": [length] * num})

    return TokenizedData(rows(64), rows(2), None, (), {}, {})


def shape_sizes(shape: str) -> Iterator[int]:
    """Parameters, tensor by tensor, before quantization."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            Qwen2Config(**SHAPES[shape], tie_word_embeddings=shape in TIED)
        )
    return (parameter.numel() for parameter in model.parameters())
