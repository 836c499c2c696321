"""Products with 8-bit weights as a GPU has them, told to fake tensors: activations are quantized
too, and weights are dequantized in the backward alone. On a CPU bitsandbytes dequantizes in both.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import bitsandbytes
from bitsandbytes.autograd._functions import MatMul8bitLt
from torch import Tensor

from peft_jobs.prediction.fake_base import Kind


@contextmanager
def int8_products_of(kind: Kind) -> Iterator[None]:
    """A block in which bitsandbytes' layers of 8 bits multiply as on such a device."""
    library: Any = bitsandbytes
    own = library.matmul
    if kind == "cuda":
        library.matmul = _on_gpu
    try:
        yield
    finally:
        library.matmul = own


def _on_gpu(
    A: Tensor,
    B: Tensor,
    out: Any = None,
    state: Any = None,
    threshold: float = 0.0,
    bias: Any = None,
) -> Any:
    return MatMul8bitLt.apply(A, B, out, bias, state)  # type: ignore[no-untyped-call]
