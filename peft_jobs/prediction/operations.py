"""What one operator is: whether it is a kernel, its floating-point operations, and what it tells
where there are no values."""

import math
from collections.abc import Sequence
from typing import Any

import bitsandbytes  # noqa: F401  # its operators
import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

INDEXED = {
    torch.ops.aten.index.Tensor,
    torch.ops.aten.index_put.default,
    torch.ops.aten.index_put_.default,
}
"""Operators whose second argument are indices, perhaps masks."""
QUANTIZE_INT8 = torch.ops.bitsandbytes.int8_vectorwise_quant.default
MULTIPLY_INT8 = torch.ops.bitsandbytes.int8_mixed_scaled_mm.default
"""Operators of LLM.int8 that take columns with outliers apart."""
_NO_KERNEL = {
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"),
    *("detach", "_unsafe_view", "lift_fresh", "_local_scalar_dense"),
}
"""Operators without a kernel, beside views."""


def is_kernel(func: Any) -> bool:
    """Whether an operator launches anything."""
    aliases = [a.alias_info for a in func._schema.arguments if a.alias_info is not None]
    is_view = any(not alias.is_write for alias in aliases)
    return not is_view and func.overloadpacket.__name__ not in _NO_KERNEL


def flops_of(func: Any, args: Any, kwargs: Any, out: Any) -> int:
    """Floating-point operations of products and attention, a multiplication and an addition being
    two; 0 for all else."""
    packet = func.overloadpacket
    if packet in flop_registry:
        return int(flop_registry[packet](*args, **kwargs, out_val=out))
    if packet.__name__ == "gemm_4bit":  # bitsandbytes: A, packed B, shape of B
        rows = math.prod(args[0].shape[:-1])
        return int(2 * rows * math.prod(args[2]))
    if packet.__name__ in ("int8_scaled_mm", "int8_mixed_scaled_mm"):
        second = args[1] if packet.__name__ == "int8_scaled_mm" else args[2]
        return int(2 * math.prod(args[0].shape[:-1]) * second.numel())
    return 0


def answer(tensor: Tensor) -> bool | int | float:
    """The value that is told where one is asked for and none is there: that not any is so, and that
    all are; else 1."""
    if tensor.dtype is torch.bool:
        return not getattr(tensor, "is_any", False)
    return 1.0 if tensor.dtype.is_floating_point else 1


def nonzero(tensor: Tensor, number: int | None = None) -> Tensor:
    """The places of what is not zero, without values: `number` of them, by default all."""
    rows = tensor.numel() if number is None else number
    return tensor.new_empty((rows, tensor.dim()), dtype=torch.int64)


def unmasked(indices: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Indices of `aten.index` and its like, with the places of all elements for each mask."""
    found: list[Tensor | None] = []
    for index in indices:
        if index is not None and index.dtype is torch.bool:
            found += nonzero(index).unbind(1)
        else:
            found.append(index)
    return found


def without_outliers(func: Any, args: Any) -> Any:
    """What QUANTIZE_INT8 and MULTIPLY_INT8 give where no column of the activations has outliers,
    whose number values decide: a few of thousands (Dettmers et al. 2022, arXiv 2208.07339, section
    3.2)."""
    if func is QUANTIZE_INT8:
        codes, scales, _ = func(args[0], 0.0)
        return codes, scales, args[0].new_empty(0, dtype=torch.int64)
    A, CA, CB, SCA, SCB, _, bias = args
    product = torch.ops.bitsandbytes.int8_scaled_mm.default(CA, CB, SCA, SCB, bias, A.dtype)
    return product, A.new_empty((A.shape[0], 0))
