"""bitsandbytes' side of a base: its configuration, its layers, and what they must not do."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from bitsandbytes import functional
from bitsandbytes.nn.modules import Int8Params, Linear4bit, Linear8bitLt, Params4bit
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from peft_jobs.device.precision import has_native_bf16
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
            compute = "bfloat16" if has_native_bf16() else "float16"
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


def weight_of(layer: Any) -> torch.Tensor:
    """The weight of a linear layer as numbers: [outputs, inputs], dequantized where it is not."""
    weight = layer.weight
    if isinstance(layer, Linear8bitLt):
        scales: Any = weight.SCB if weight.SCB is not None else layer.state.SCB
        values: torch.Tensor = functional.int8_vectorwise_dequant(weight.data, scales)
    elif isinstance(layer, Linear4bit):
        values = functional.dequantize_4bit(weight.data, weight.quant_state)
    else:
        values = weight.detach().T if isinstance(layer, Conv1D) else weight.detach()
    return values


def check_skipped(outline: PreTrainedModel, quantization: QuantizationSpec) -> None:
    """Raise SpecError for a module to skip that `outline` does not have."""
    names = [name for name, _ in outline.named_modules()]
    for skipped in quantization.llm_int8_skip_modules:
        if not any(skipped in name for name in names):
            children = ", ".join(sorted({name.rpartition(".")[2] for name in names if name}))
            raise SpecError(
                f"quantization.llm_int8_skip_modules: {skipped!r} matches no module; "
                f"modules: {children}"
            )


def check_contents(model: PreTrainedModel, quantization: QuantizationSpec, name: str) -> None:
    """Raise SpecError if the weights of the checkpoint `name` did not come as `quantization` says.

    Every layer that is to be quantized must be so, in this scheme; all the rest must not.
    """
    for full, module in model.named_modules():
        if isinstance(module, QUANTIZED):
            came = _scheme_of(module)
            if came != (quantization.scheme, quantization.bnb_4bit_use_double_quant):
                raise SpecError(
                    f"quantization.scheme: {quantization.scheme} was asked for, and {full} of "
                    f"{name} came {_words(came)}; its config.json does not describe its weights"
                )
            if skipped := [part for part in quantization.llm_int8_skip_modules if part in full]:
                raise SpecError(
                    f"quantization.llm_int8_skip_modules: {skipped[0]!r} was asked for, and {full} "
                    f"of {name} is quantized in the checkpoint"
                )
            continue
        for part, parameter in module.named_parameters(recurse=False):
            if not (parameter.is_floating_point() or parameter.is_complex()):
                raise SpecError(
                    f"model.name_or_path: {full}.{part} of {name} came as {parameter.dtype}, which "
                    "its config.json says nothing of; give the checkpoint before quantization"
                )


def loaded_quantization(model: PreTrainedModel, from_checkpoint: bool) -> dict[str, Any]:
    """What quantization `model` has, read from its layers, for the record; as JSON.

    `scheme` (`none` where no layer is quantized), `from_checkpoint` (it was stored so), and the
    options of the layers, by bitsandbytes' names.
    """
    layers: list[Any] = [module for module in model.modules() if isinstance(module, QUANTIZED)]
    if not layers:
        return {"scheme": "none"}
    layer = layers[0]
    found: dict[str, Any] = {"scheme": _scheme_of(layer)[0], "from_checkpoint": from_checkpoint}
    state: Any = getattr(layer.weight, "quant_state", None)
    if state is not None:
        return found | {
            "bnb_4bit_use_double_quant": state.nested,
            "bnb_4bit_compute_dtype": str(layer.compute_dtype).removeprefix("torch."),
            "bnb_4bit_quant_storage": str(layer.weight.dtype).removeprefix("torch."),
            "blocksize": state.blocksize,
        }
    return found | {"llm_int8_threshold": layer.state.threshold}


def _scheme_of(layer: Any) -> tuple[str, bool]:
    """(scheme, double quantization) of a quantized layer's weight as it is."""
    weight = layer.weight
    if isinstance(layer, Linear8bitLt):
        scales = getattr(weight, "SCB", None)
        return ("none" if scales is None and layer.state.SCB is None else "int8"), False
    state = getattr(weight, "quant_state", None)
    return ("none", False) if state is None else (state.quant_type, state.nested)


def _words(came: tuple[str, bool]) -> str:
    scheme, double = came
    return f"as {scheme}" + " with double quantization" * double


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
