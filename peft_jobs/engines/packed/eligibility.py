"""Which trials can share a step, and why others cannot: rows must be independent of each other."""

import math
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from peft_jobs.base.loading import Base
from peft_jobs.engines.packed.base_traits import traits_of
from peft_jobs.engines.packed.forms import FORMS
from peft_jobs.engines.packed.parts import parts_of
from peft_jobs.methods.continuation import is_plain
from peft_jobs.spec import TrialSpec
from peft_jobs.spec.adapters import saved_adapter
from peft_jobs.tasks.sequence_classification import reads_last_position

ALONE = {
    "adalora": "adalora cuts ranks while it trains",
    "loha": "loha multiplies two products element by element, which takes a weight for each slot",
    "lokr": "lokr's Kronecker factors have shapes of their own for each slot",
    "oft": "oft turns the weights, which takes a rotation of each slot's inputs",
    "ln_tuning": "ln_tuning trains the base's norms, whose formulas are the architectures' own",
    "full": "full fine-tuning changes the base that all slots share",
}
"""Why some methods have no packed form."""


def unpackable(spec: TrialSpec, base: Base) -> str | None:
    """Why the trial cannot be packed on this base; None if it can."""
    adapter, model = spec.adapter, base.model
    if adapter.method not in FORMS:
        return ALONE.get(adapter.method, f"method {adapter.method} has no packed form")
    if (reason := FORMS[adapter.method].refusal(adapter)) is not None:
        return reason
    if adapter.source is not None and not is_plain(saved_adapter(adapter), adapter):
        return f"the saved adapter that it goes on from is a variant of {adapter.method}"
    if adapter.modules_to_save:
        return "modules of the base are trained too"
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
    form = FORMS[adapter.method]
    for name in parts.adapted:
        layer = model.get_submodule(name)
        if not isinstance(layer, nn.Linear | Conv1D):
            return f"{name} is no linear layer"
        if (reason := form.layer_refusal(adapter, layer)) is not None:
            return f"{name}: {reason}"
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
    if habits.stretches and form.dropout(adapter):
        return "the base pads rows itself, and dropout would fall on other tokens"
    for name in (*parts.adapted, *parts.whole):
        if name in habits.opened:
            return f"the base takes the weight of {name} past its adapter"
        if name in habits.shared:
            return f"the base gives {name} what belongs to no row"
    return None


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
