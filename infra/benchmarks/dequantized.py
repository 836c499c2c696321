"""The best that a trial alone can have (B2): a base whose 4-bit weights are dequantized once."""

import copy
from typing import Any

import bitsandbytes as bnb
import torch
import torch._dynamo
from bitsandbytes.nn.modules import Linear4bit
from torch import nn

from peft_jobs.base.loading import Base
from peft_jobs.data.tokenized import TokenizedData
from peft_jobs.engines.solo.solo_engine import SoloEngine


class Held:
    """In place of what an engine finds resident: this base and these rows, whatever is asked."""

    def __init__(self, base: Base, data: TokenizedData, cache_dir: str) -> None:
        self.base, self.data, self.cache_dir = base, data, cache_dir

    def get(self, spec: Any, phases: Any) -> tuple[Base, TokenizedData]:
        return self.base, self.data

    def verify(self) -> None:
        """Hashing all weights after each trial is not what is measured."""


def holding(base: Base, data: TokenizedData, cache_dir: str, threads: int) -> SoloEngine:
    """An engine that has these resident."""
    engine = SoloEngine(cache_dir, threads=threads)
    engine._resident = Held(base, data, cache_dir)  # type: ignore[assignment]
    return engine


def dequantized(base: Base, compiled: bool = False) -> Base:
    """A copy of the base with the same values in plain linear layers, compiled block by block.

    What was not quantized is shared with the base.
    """
    shared: dict[int, Any] = {id(tensor): tensor for tensor in base.model.parameters()}
    shared |= {id(tensor): tensor for tensor in base.model.buffers()}
    model = copy.deepcopy(base.model, shared)
    for name, layer in list(model.named_modules()):
        if isinstance(layer, Linear4bit):
            parent, _, child = name.rpartition(".")
            weight: Any = layer.weight
            values = bnb.functional.dequantize_4bit(weight.data, weight.quant_state)
            plain = nn.Linear(layer.in_features, layer.out_features, False, device="meta")
            plain.weight = nn.Parameter(values.to(layer.compute_dtype), requires_grad=False)
            plain.bias = layer.bias
            plain.train(layer.training)
            setattr(model.get_submodule(parent), child, plain)
    if compiled:
        torch._dynamo.config.recompile_limit = 64  # two a shape: with and without input gradients
        blocks: Any = model.get_submodule("model.layers")
        for block in blocks:
            block.compile(dynamic=False)
    return Base(
        model, base.tokenizer, base.device, {}, {}, base.fingerprint, base.key, base.contents
    )
