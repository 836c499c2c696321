"""Which trials can share a step, and why others cannot: rows must be independent of each other."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft.utils.other import get_pattern_key
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from peft_jobs.base.architecture import head_modules
from peft_jobs.base.heads import fresh_modules, initial_head
from peft_jobs.base.loading import Base
from peft_jobs.base.quantization import QUANTIZED
from peft_jobs.engines.packed.base_traits import traits_of
from peft_jobs.engines.packed.layout import Named, features
from peft_jobs.methods.continuation import PREFIX, is_plain, read_weights
from peft_jobs.methods.lora import drawn_factors
from peft_jobs.methods.placement import places
from peft_jobs.spec import LoraSpec, TrialSpec
from peft_jobs.spec.adapters import saved_adapter
from peft_jobs.tasks.sequence_classification import reads_last_position


@dataclass(frozen=True)
class LowRank:
    """LoRA on one module."""

    r: int
    scale: float
    """alpha / r, or alpha / sqrt(r)."""


@dataclass(frozen=True)
class Parts:
    """What a trial trains: LoRA on some modules, other modules whole."""

    adapted: Mapping[str, LowRank]
    whole: Mapping[str, str]
    """Linear layers that are trained whole, with the heads that they are, or lie in."""
    is_transposed: bool = False
    """Whether an adapted module keeps its weight the other way round, [inputs, outputs]."""

    @property
    def heads(self) -> list[str]:
        """Sorted."""
        return sorted(set(self.whole.values()))

    @property
    def rank(self) -> int:
        """The highest."""
        return max(low.r for low in self.adapted.values())


def unpackable(spec: TrialSpec, base: Base) -> str | None:
    """Why the trial cannot be packed on this base; None if it can."""
    adapter, model = spec.adapter, base.model
    if not isinstance(adapter, LoraSpec):
        return f"method {adapter.method} has no packed form"
    if adapter.target_parameters:
        return "LoRA on parameters outside of linear modules has no packed form"
    if adapter.use_dora:
        return "use_dora has no packed form"
    if adapter.init_lora_weights not in ("default", "gaussian", "orthogonal"):
        return f"init_lora_weights {adapter.init_lora_weights} looks at the base or at the data"
    if adapter.source is not None and not is_plain(saved_adapter(adapter), adapter):
        return "the saved adapter that it goes on from is a variant of LoRA"
    if adapter.bias != "none" or adapter.modules_to_save:
        return "biases or modules of the base are trained too"
    if spec.data.packing:
        return "data.packing lays several samples into a row"
    if spec.evaluation.generation is not None:
        return "evaluation.generation writes texts, which a pack cannot"
    training = spec.training
    if training.fp16 or not training.optim.startswith("adamw_torch"):
        return "a scaled loss, or another optimizer than torch's AdamW, is asked for"
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        return "the base normalises over the batch"
    if reads_last_position(model):
        return "the base's classifier reads the last position, and a pack is padded there"
    if _experts(model):
        return "the base routes tokens to experts, and rows compete for them"
    if spec.data.max_length > (length := _rope_length(model)):
        return f"beyond {length} tokens the base turns all rows by the longest one's frequencies"
    quantization = spec.quantization
    if quantization.scheme == "int8" and quantization.llm_int8_threshold != 0:
        return "int8 with an outlier threshold takes outliers over all rows; set it to 0 to pack"
    parts = parts_of(spec, model)
    for name in parts.adapted:
        if not isinstance(model.get_submodule(name), nn.Linear | Conv1D):
            return f"{name} is no linear layer"
    for name in parts.whole:
        if type(layer := model.get_submodule(name)) is not nn.Linear:
            return f"the head {parts.whole[name]} has a {type(layer).__name__}, no linear layer"
    habits = traits_of(base)
    if habits.failure is not None:
        return f"the base fails on two tokens: {habits.failure}"
    if habits.draws:
        return "the base itself drops activations, by a generator that all rows share"
    if habits.mixes:
        return "what the base gives for a row depends on the rows beside it, or on padding"
    if habits.stretches and adapter.lora_dropout:
        return "the base pads rows itself, and dropout would fall on other tokens"
    for name in (*parts.adapted, *parts.whole):
        if name in habits.opened:
            return f"the base takes the weight of {name} past its adapter"
        if name in habits.shared:
            return f"the base gives {name} what belongs to no row"
    return None


def lora_of(spec: TrialSpec) -> LoraSpec:
    """The adapter of a trial that can be packed."""
    assert isinstance(spec.adapter, LoraSpec)
    return spec.adapter


def parts_of(spec: TrialSpec, model: PreTrainedModel) -> Parts:
    """The modules that the trial trains, in the order of the model."""
    fresh, adapter = fresh_modules(model), lora_of(spec)
    targets = places(model, adapter, exclude=fresh)
    heads = (*fresh, *head_modules(model)) if spec.task.HAS_HEAD else ()
    whole = {
        f"{head}.{inner}".rstrip("."): head
        for head in heads
        for inner, module in model.get_submodule(head).named_modules()
        if any(True for _ in module.parameters(recurse=False))
    }
    return Parts(
        {name: _low_rank(adapter, name) for name in targets},
        whole,
        any(isinstance(model.get_submodule(name), Conv1D) for name in targets),
    )


def _low_rank(adapter: LoraSpec, name: str) -> LowRank:
    """With the patterns read as PEFT reads them."""
    r = adapter.rank_pattern.get(get_pattern_key([*adapter.rank_pattern], name), adapter.r)
    key = get_pattern_key([*adapter.alpha_pattern], name)
    alpha = adapter.alpha_pattern.get(key, adapter.lora_alpha)
    return LowRank(r, alpha / (math.sqrt(r) if adapter.use_rslora else r))


def initial_values(spec: TrialSpec, parts: Parts, model: PreTrainedModel) -> Named:
    """What the trial starts with: keyed A and B, and its own copies of the heads; or what a saved
    adapter has in their place."""
    values: Named = {}
    adapter = lora_of(spec)
    for name, low in parts.adapted.items():
        shape = low.r, *features(model.get_submodule(name))
        down, up = drawn_factors(adapter.init_lora_weights, spec.seed, name, *shape)
        values[name, "lora_A"], values[name, "lora_B"] = down, up
    heads = {head: initial_head(model, head, spec.seed) for head in parts.heads}
    for name, head in parts.whole.items():
        layer = heads[head].get_submodule(name[len(head) + 1 :])
        for part, parameter in layer.named_parameters():
            values[name, "bias" if part == "bias" else "weight"] = parameter.detach()
    return values if adapter.source is None else _saved_values(adapter, parts, values)


def _saved_values(adapter: LoraSpec, parts: Parts, fresh: Named) -> Named:
    """`fresh` with the tensors of the saved adapter in their place."""
    names = {
        f"{PREFIX}{module}.{part}{'.weight' if part.startswith('lora') else ''}": (module, part)
        for module, part in fresh
    }
    own = {name: fresh[place] for name, place in names.items()}
    found = read_weights(saved_adapter(adapter), own, parts.heads)
    return fresh | {names[name]: tensor.float() for name, tensor in found.items()}


def dtype_of(base: Base) -> torch.dtype:
    """Of the trained parameters: float32, whatever the base is in (float64 in float64)."""
    weights = {p.dtype for m in base.model.modules() for p in m.parameters(recurse=False)
               if not isinstance(m, QUANTIZED)}  # fmt: skip
    return torch.float64 if torch.float64 in weights else torch.float32


def _rope_length(model: PreTrainedModel) -> float:
    """Tokens up to which the frequencies of rotary positions are the same in every batch
    (`transformers.modeling_rope_utils.dynamic_rope_update`)."""
    lengths = [math.inf]
    for module in model.modules():
        types: Any = getattr(module, "rope_type", None)
        if types is None:
            continue
        config: Any = module.config
        for layer, kind in types.items() if isinstance(types, dict) else [(None, types)]:
            parameters = config.rope_parameters if layer is None else config.rope_parameters[layer]
            if kind == "longrope":
                lengths.append(parameters["original_max_position_embeddings"])
            elif "dynamic" in kind:
                lengths.append(config.max_position_embeddings)
    return min(lengths)


def _experts(model: PreTrainedModel) -> bool:
    config: Any = model.config
    names = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    return any((getattr(config, name, 0) or 0) > 1 for name in names)
