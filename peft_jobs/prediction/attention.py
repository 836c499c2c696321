"""The attention that a device takes: what torch would choose there, told to fake tensors.

torch chooses among its kernels by asking the device, which is not here. On a GPU the choice is
FlashAttention where there is no mask, and the memory-efficient kernel where there is one; neither
keeps scores. On a CPU it is torch's own flash kernel, which takes no dropout. Both flash kernels
take fewer heads of keys than of queries; where they cannot be had for such, all is written out.
transformers makes no mask where nothing is padded, but looks at values for that, and not at fake
ones.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import masking_utils

from peft_jobs.prediction.fake_base import Kind

_ALIGNED = 8
"""To a multiple of which the memory-efficient kernel wants the last dimension of a mask."""


@contextmanager
def attention_of(kind: Kind, pads: bool) -> Iterator[None]:
    """A block in which torch's `scaled_dot_product_attention` is that of a device, in the backward
    too (where a mode of torch's would be off), and batches have padding or none."""
    masks: Any = masking_utils
    own = torch.nn.functional.scaled_dot_product_attention, masks.is_tracing
    torch.nn.functional.scaled_dot_product_attention = partial(attend, kind)
    if not pads:
        masks.is_tracing = lambda tensor=None: False
    try:
        yield
    finally:
        torch.nn.functional.scaled_dot_product_attention, masks.is_tracing = own


def attend(
    kind: Kind,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """As torch's, [B, heads, S, D], by the kernel that the device would take."""
    is_half = query.dtype in (torch.bfloat16, torch.float16)
    is_flash = kind == "cpu" or (attn_mask is None and is_half)
    is_math = query.dim() != 4 or (kind == "cpu" and dropout_p > 0) or (enable_gqa and not is_flash)
    if enable_gqa and is_math:
        times = query.shape[-3] // key.shape[-3]
        key, value = (t.repeat_interleave(times, -3) for t in (key, value))
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        filled = torch.zeros_like(attn_mask, dtype=query.dtype)
        attn_mask = filled.masked_fill_(attn_mask.logical_not(), float("-inf"))
    aten = torch.ops.aten
    found: Tensor
    if is_math:
        found = aten._scaled_dot_product_attention_math(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale
        )[0]
    elif kind == "cpu":
        found = aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale
        )[0]
    elif is_flash:
        found = aten._scaled_dot_product_flash_attention(
            query, key, value, dropout_p, is_causal, False, scale=scale
        )[0]
    else:
        bias = _bias(attn_mask, query, key)
        found = aten._scaled_dot_product_efficient_attention(
            query, key, value, bias, True, dropout_p, is_causal, scale=scale
        )[0]
    return found


def _bias(attn_mask: Tensor | None, query: Tensor, key: Tensor) -> Tensor | None:
    """The mask for all heads, [B, heads, Q, K], its rows padded as the kernel wants them."""
    if attn_mask is None:
        return None
    length = attn_mask.shape[-1]
    if length % _ALIGNED:
        attn_mask = torch.nn.functional.pad(attn_mask, (0, _ALIGNED - length % _ALIGNED))
        attn_mask = attn_mask[..., :length]
    return attn_mask.expand(*query.shape[:3], key.shape[2])
