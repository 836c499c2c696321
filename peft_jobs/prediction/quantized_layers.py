"""Layers that are quantized by shape alone: no values, what bitsandbytes' kernels ask of them.

`Params4bit` itself wraps no fake tensor: the weight is a plain parameter that carries what the
layers and PEFT read of one, its class's name among them.
"""

from typing import Any, cast

import torch
from bitsandbytes.functional import QuantState
from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from peft_jobs.spec import QuantizationSpec

BLOCK = 64
"""Weights that share a scale (bitsandbytes' default, which transformers takes)."""
NESTED_BLOCK = 256
"""Scales that share one in double quantization (`bitsandbytes.functional.quantize_4bit`)."""


class _Quantized(nn.Parameter):
    def __deepcopy__(self, memo: Any) -> "_Quantized":
        copied: Any = type(self)(self.data.clone(), self.requires_grad)
        vars(copied).update(vars(self))
        return cast(_Quantized, copied)


class Params4bit(_Quantized):
    """PEFT goes by this name."""


class Int8Params(_Quantized):
    """The same."""


_FAKE: dict[type, Any] = {
    kind: type(kind.__name__, (FakeTensor,), {"__doc__": "The same, of a fake tensor."})
    for kind in (Params4bit, Int8Params)
}


def fake_weight(weight: nn.Parameter, fake: nn.Parameter) -> nn.Parameter:
    """`fake`, by the name of the class of the `weight` that it stands for."""
    fake.__class__ = _FAKE.get(type(weight), type(fake))
    return fake


def quantize_by_shape(model: nn.Module, quantization: QuantizationSpec) -> None:
    """Give the layers of `model`, on the meta device, the weights that quantization would, in
    place."""
    model.is_quantized = True  # type: ignore[assignment]
    for module in model.modules():
        if isinstance(module, Linear4bit):
            _in_four_bits(module, quantization)
        elif isinstance(module, Linear8bitLt):
            _in_eight_bits(module)
    name = "is_loaded_in_8bit" if quantization.scheme == "int8" else "is_loaded_in_4bit"
    setattr(model, name, True)


def _in_four_bits(layer: Any, quantization: QuantizationSpec) -> None:
    size, shape = layer.weight.numel(), layer.weight.shape
    dtype = layer.weight.dtype
    double = quantization.bnb_4bit_use_double_quant
    blocks = -(-size // BLOCK)
    nested = None
    if double:
        nested = QuantState(  # type: ignore[no-untyped-call]
            absmax=_meta(-(-blocks // NESTED_BLOCK), torch.float32),
            code=_meta(256, torch.float32),
            blocksize=NESTED_BLOCK,
            dtype=torch.float32,
        )
    state = QuantState(  # type: ignore[no-untyped-call]
        absmax=_meta(blocks, torch.uint8 if double else torch.float32),
        shape=torch.Size(shape),
        code=_meta(16, torch.float32),
        blocksize=BLOCK,
        quant_type=quantization.scheme,
        dtype=dtype,
        offset=torch.empty((), device="meta") if double else None,
        state2=nested,
    )
    weight: Any = Params4bit(
        torch.empty(-(-size // 2), 1, dtype=torch.uint8, device="meta"), requires_grad=False
    )
    for name, value in {
        "quant_state": state,
        "bnb_quantized": True,
        "compress_statistics": double,
        "quant_type": quantization.scheme,
        "quant_storage": torch.uint8,
        "blocksize": BLOCK,
        "module": None,
    }.items():
        setattr(weight, name, value)
    layer.weight, layer.quant_state = weight, state
    layer.support_avx512bf16_for_cpu = False


def _in_eight_bits(layer: Any) -> None:
    weight: Any = Int8Params(
        torch.empty(layer.weight.shape, dtype=torch.int8, device="meta"), requires_grad=False
    )
    weight.CB = weight.SCB = None
    weight.has_fp16_weights = False
    layer.weight = weight
    layer.state.CB, layer.state.SCB = weight.data, _meta(layer.out_features, torch.float32)


def _meta(size: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(size, dtype=dtype, device="meta")
