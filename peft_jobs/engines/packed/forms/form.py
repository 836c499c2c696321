"""Form: how the trials of one method share a step."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from peft_jobs.engines.packed.layout import Named, Part, Shapes
from peft_jobs.methods.continuation import PREFIX
from peft_jobs.randomness import ADAPTER
from peft_jobs.spec import TrialSpec

_NAMES: Mapping[Part, str] = {
    "lora_A": f"lora_A.{ADAPTER}.weight",
    "lora_B": f"lora_B.{ADAPTER}.weight",
    "magnitude": f"lora_magnitude_vector.{ADAPTER}.weight",
    "scaled_inputs": f"ia3_l.{ADAPTER}",
    "scaled_outputs": f"ia3_l.{ADAPTER}",
    "lambda_d": f"vera_lambda_d.{ADAPTER}",
    "lambda_b": f"vera_lambda_b.{ADAPTER}",
    "block": f"miss_block.{ADAPTER}",
    "vera_A": f"vera_A.{ADAPTER}",
    "vera_B": f"vera_B.{ADAPTER}",
}
"""Of an adapter's tensors in the module, in PEFT's model."""


def peft_name(module: str, part: Part, head: str = "") -> str:
    """The name of a tensor in PEFT's model of the trial; `head` is the one that the module lies in,
    if it does. The empty module is the base, which has what all adapted modules share."""
    if part in _NAMES:
        return f"{PREFIX}{module}.{_NAMES[part]}" if module else f"base_model.{_NAMES[part]}"
    inner = module.removeprefix(head)
    return f"{PREFIX}{head}.modules_to_save.{ADAPTER}{inner}.{part}"


def file_name(module: str, part: Part) -> str:
    """The same in PEFT's files, which leave the adapter's own name out."""
    name = peft_name(module, part, module).replace(f".{ADAPTER}", "")
    if part == "magnitude":
        return name.removesuffix(".weight")  # as PEFT's files had it before it was a module's
    return name.replace(".modules_to_save.", ".")


@dataclass(frozen=True)
class FormParts:
    """What an adapter has on the modules of a base."""

    shapes: Shapes
    """Of its tensors."""
    scales: Mapping[str, float] = field(default_factory=dict)
    """Of LoRA's modules: alpha / r, or alpha / sqrt(r)."""
    frozen: Callable[[], Named] = dict
    """Its tensors that are not trained."""


@dataclass(frozen=True)
class Form:
    """The functions are what differs between methods; their adapters are sections of the method."""

    refusal: Callable[[Any], str | None]
    """Why an adapter has no packed form; None if it has one."""
    dropout: Callable[[Any], float]
    """Rate at which inputs of adapted modules are dropped."""
    parts: Callable[[Any, PreTrainedModel, Sequence[str]], FormParts]
    """Of an adapter on the modules of these full names."""
    values: Callable[[TrialSpec, FormParts, PreTrainedModel], Named]
    """What the adapter of a trial starts with, drawn by its keys."""
    layer_refusal: Callable[[Any, nn.Module], str | None] = lambda adapter, layer: None
    """Why an adapter has no packed form on a linear layer; None if it has one."""
