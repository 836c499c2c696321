"""What one operator is to a device: whether it is a kernel, and its floating-point operations."""

import math
from typing import Any

from torch.utils.flop_counter import flop_registry

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
