"""bitsandbytes' side of a base: its configuration, its layers, and what they must not do."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from bitsandbytes.nn.modules import Int8Params, Linear4bit, Linear8bitLt, Params4bit
from transformers import BitsAndBytesConfig, PreTrainedModel

from peft_jobs.errors import SpecError
from peft_jobs.spec import QuantizationSpec

QUANTIZED = (Linear4bit, Linear8bitLt)


def bnb_config(
    quantization: QuantizationSpec, skip: Sequence[str], device: torch.device
) -> BitsAndBytesConfig | None:
    """bitsandbytes' configuration for the spec, or None; the modules `skip` are left alone."""
    if quantization.scheme == "none":
        return None
    if quantization.scheme == "int8":
        return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
            load_in_8bit=True,
            llm_int8_threshold=quantization.llm_int8_threshold,
            llm_int8_skip_modules=list(skip),
        )
    compute = quantization.bnb_4bit_compute_dtype
    if compute == "auto":
        compute = "float32"
        if device.type == "cuda":
            compute = "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization.scheme,
        bnb_4bit_use_double_quant=quantization.bnb_4bit_use_double_quant,
        bnb_4bit_compute_dtype=getattr(torch, compute),
        llm_int8_skip_modules=list(skip),
    )


def is_quantized(module: torch.nn.Module) -> bool:
    """Whether `module` is or contains a quantized layer."""
    return any(isinstance(part, QUANTIZED) for part in module.modules())


def settle(model: PreTrainedModel, quantization: QuantizationSpec) -> None:
    """Make the quantized layers of `model` stay as they are from now on, and try every shape.

    Raises SpecError if nothing was quantized, or for a shape that the device's kernels refuse.
    """
    layers = [module for module in model.modules() if isinstance(module, QUANTIZED)]
    if quantization.scheme != "none" and not layers:
        raise SpecError(
            f"quantization.scheme: {quantization.scheme} quantizes no layer of "
            f"{type(model).__name__}, which does not use torch's own Linear; give none"
        )
    for layer in layers:
        if isinstance(layer, Linear4bit):
            # bitsandbytes 0.50.2 repacks the weight at the first forward in eval mode, for a CPU
            # kernel that has no backward; gradients through the layer are lost from then on.
            layer.support_avx512bf16_for_cpu = False
            if layer.bias is not None:  # otherwise cast in place by the first forward
                layer.bias.data = layer.bias.data.to(layer.compute_dtype)
    shapes = {(layer.in_features, layer.out_features): layer for layer in layers}
    for (width, height), layer in shapes.items():
        try:
            rows = torch.zeros(2, width, device=layer.weight.device, requires_grad=True)
            layer(rows).sum().backward()
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, AssertionError, ValueError) as error:
            raise SpecError(
                f"quantization.scheme: {quantization.scheme} cannot run a layer of {width} x "
                f"{height} on {layer.weight.device.type} ({error}); give another scheme, or name "
                "the layer in quantization.llm_int8_skip_modules"
            ) from error


@contextlib.contextmanager
def quantization_seconds(device: torch.device) -> Iterator[list[float]]:
    """Sums, in the one element given, the time inside bitsandbytes' quantization of a weight."""
    total = [0.0]
    kinds: list[Any] = [Params4bit, Int8Params]
    originals = [kind._quantize for kind in kinds]

    def timed(original: Any) -> Any:
        def quantize(parameter: Any, *args: Any) -> Any:
            started = time.perf_counter()
            result = original(parameter, *args)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            total[0] += time.perf_counter() - started
            return result

        return quantize

    for kind, original in zip(kinds, originals, strict=True):
        kind._quantize = timed(original)
    try:
        yield total
    finally:
        for kind, original in zip(kinds, originals, strict=True):
            kind._quantize = original
