"""Copies of the base's own modules are trained in float32, whatever the base's dtype is."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from peft.tuners.ln_tuning.layer import LNTuningLayer
from peft.utils.other import ModulesToSaveWrapper
from torch import nn

from peft_jobs.errors import SpecError
from peft_jobs.randomness import ADAPTER
from peft_jobs.spec import TrainingSpec

HALF = {torch.bfloat16, torch.float16}


def train_in_float32(model: nn.Module) -> None:
    """Raise trained copies of half-precision modules to float32; the base sees its own dtype."""
    for copy in _copies(model):
        raise_to_float32(copy)


def raise_to_float32(module: nn.Module) -> None:
    """`module` in float32, with inputs and outputs in the dtype that it had, in place."""
    half = {parameter.dtype for parameter in module.parameters()} & HALF
    if half:
        module.float()
        module.register_forward_pre_hook(_to_float32)
        module.register_forward_hook(_to_dtype(half.pop()))


def check_scaled_gradients(model: nn.Module, training: TrainingSpec) -> None:
    """SpecError if `fp16`, whose scaled gradients are float32's alone, meets trained float16."""
    if not training.fp16:
        return
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.dtype == torch.float16:
            raise SpecError(
                f"training.fp16 needs trainable parameters in float32, and {name} is float16; "
                "give adapter.bias none, or model.dtype float32"
            )


def _copies(model: nn.Module) -> Iterator[nn.Module]:
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            yield module.modules_to_save[ADAPTER]
        elif isinstance(module, LNTuningLayer):
            yield module.ln_tuning_layers[ADAPTER]


def _to_float32(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(
        x.float() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in inputs
    )


def _to_dtype(dtype: torch.dtype) -> Callable[[nn.Module, Any, Any], Any]:
    def cast(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        return output.to(dtype) if isinstance(output, torch.Tensor) else output

    return cast
