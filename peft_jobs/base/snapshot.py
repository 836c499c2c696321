"""A base's structure, so that whatever an adapter did to it can be undone exactly.

Methods replace modules, set flags and add hooks, each in its own way, and some of PEFT's own ways
back fail on a quantized base. Putting back the attributes of every module needs to know none of
them. Values are not copied, except those that a trial may change: see `keep_trainable_values` and
`keep_weights`.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from bitsandbytes.nn.modules import Linear8bitLt
from torch import nn
from transformers import PreTrainedModel

from peft_jobs.base.quantization import QUANTIZED


@dataclass
class Snapshot:
    """Attributes of all modules of `model`, in the state in which `restore` leaves them."""

    model: PreTrainedModel
    attributes: list[tuple[nn.Module, dict[str, Any]]]
    parameters: list[nn.Parameter]
    values: list[tuple[nn.Parameter, torch.Tensor]] = field(default_factory=list)
    scales: list[tuple[Any, tuple[Any, ...]]] = field(default_factory=list)
    """Of int8 layers: they move from the weight to the layer's state, and DoRA loses them."""

    @classmethod
    def of(cls, model: PreTrainedModel) -> "Snapshot":
        """The snapshot of a frozen model. Costs no memory beside dictionaries and a few biases."""
        attributes = [(module, _copy(vars(module))) for module in model.modules()]
        snapshot = cls(model, attributes, list(model.parameters()))
        for module in model.modules():
            if isinstance(module, Linear8bitLt):
                snapshot.scales.append((module, _scales(module)))
            # bitsandbytes casts an int8 layer's bias, in place, to the dtype that comes in.
            if isinstance(module, QUANTIZED) and isinstance(module.bias, nn.Parameter):
                snapshot._keep(module.bias)
        return snapshot

    def keep_trainable_values(self) -> None:
        """Copy the parameters of the base that have become trainable (PEFT's `bias` option)."""
        for parameter in self.parameters:
            if parameter.requires_grad:
                self._keep(parameter)

    def keep_weights(self, names: Iterable[str]) -> None:
        """Copy the parameters of the modules `names`, on the CPU; of the whole model if none."""
        modules = [self.model.get_submodule(name) for name in names] or [self.model]
        for module in modules:
            for parameter in module.parameters():
                self.values.append((parameter, parameter.detach().to("cpu", copy=True)))

    def restore(self) -> None:
        """Put everything back; frozen, without gradients."""
        for module, attributes in self.attributes:
            vars(module).clear()
            vars(module).update(_copy(attributes))
        for layer, scales in self.scales:
            weight, state = layer.weight, layer.state
            weight.CB, weight.SCB, state.CB, state.SCB = scales
        for parameter in self.parameters:
            parameter.requires_grad_(False)
            parameter.grad = None
        for parameter, value in self.values:
            parameter.data = value.to(parameter.device, copy=True)

    def _keep(self, parameter: nn.Parameter) -> None:
        self.values.append((parameter, parameter.detach().clone()))


def _scales(layer: Any) -> tuple[Any, ...]:
    weight, state = layer.weight, layer.state
    return weight.CB, weight.SCB, state.CB, state.SCB


def _copy(attributes: dict[str, Any]) -> dict[str, Any]:
    """A copy that shares the values, but not the dictionaries in which modules keep theirs.

    Those are `_modules`, `_parameters`, `_buffers` and the hooks.
    """
    return {
        name: value.copy() if isinstance(value, dict) else value
        for name, value in attributes.items()
    }
