"""The batched products of a pack's layers, which add their gradients to the pack's rows in place.

Autograd's own accumulation would build a gradient of all slots for every tensor, whoever takes
part, and add it to a strided view. Here each backward is a product that is added where it belongs.

Dimensions: K slots at work, T tokens of a slot, R rank, I and O a module's inputs and outputs.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Rows = slice | Tensor
"""Slots at work: a range, or their numbers."""
Views = tuple[Tensor, Tensor]
"""Values of all slots at one place, in the dtype of the products, and their gradients."""
Kept = Callable[[], Tensor]
"""Draws what of the inputs is kept, bool [K, T, I], the same each time."""


def low_rank_update(
    result_KTO: Tensor,
    x_KTI: Tensor,
    down: Views,
    up: Views,
    scales_K: Tensor,
    rows: Rows,
    anchor: Tensor,
    sum_dtype: torch.dtype,
    kept: Kept | None = None,
) -> Tensor:
    """`result + scale * (x A^T) B^T` in the dtype of `result`.

    The products are in the dtype of `x`, values and scales; of `x` only what is `kept` enters. What
    is added is rounded to `sum_dtype` before.
    """
    out: Tensor = _LowRank.apply(  # type: ignore[no-untyped-call]
        result_KTO, x_KTI, down, up, scales_K, rows, anchor, sum_dtype, kept
    )
    return out


def whole_linear(
    x_KTI: Tensor, weight: Views, bias: Views | None, rows: Rows, anchor: Tensor
) -> Tensor:
    """`x W^T + b` of each slot, in the dtype of `x`."""
    out: Tensor = _Whole.apply(x_KTI, weight, bias, rows, anchor)  # type: ignore[no-untyped-call]
    return out


class _LowRank(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        result_KTO: Tensor,
        x_KTI: Tensor,
        down: Views,
        up: Views,
        scales_K: Tensor,
        rows: Rows,
        anchor: Tensor,
        sum_dtype: torch.dtype,
        kept: Kept | None,
    ) -> Tensor:
        dtype = x_KTI.dtype
        if kept is not None:
            x_KTI = x_KTI * kept()
        down_KRI, up_KOR = down[0][rows], up[0][rows]
        scales_K11 = scales_K.view(-1, 1, 1)
        low_KTR = torch.bmm(x_KTI, down_KRI.transpose(1, 2)).mul_(scales_K11)
        ctx.save_for_backward(x_KTI, low_KTR, down_KRI, up_KOR, scales_K11)
        ctx.gradients, ctx.rows, ctx.kept = (down[1], up[1]), rows, kept
        if result_KTO.dtype == dtype and dtype in (torch.float32, torch.float64):
            return torch.baddbmm(result_KTO, low_KTR, up_KOR.transpose(1, 2))
        update_KTO = torch.bmm(low_KTR, up_KOR.transpose(1, 2))
        return (result_KTO + update_KTO.to(sum_dtype)).to(result_KTO.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x_KTI, low_KTR, down_KRI, up_KOR, scales_K11 = ctx.saved_tensors
        into_down, into_up = ctx.gradients
        grad_KTO = gradients[0].to(x_KTI.dtype)
        _add(into_up, ctx.rows, grad_KTO.transpose(1, 2), low_KTR)
        grad_low_KTR = torch.bmm(grad_KTO, up_KOR).mul_(scales_K11)
        _add(into_down, ctx.rows, grad_low_KTR.transpose(1, 2), x_KTI)
        grad_x = torch.bmm(grad_low_KTR, down_KRI) if ctx.needs_input_grad[1] else None
        if grad_x is not None and ctx.kept is not None:
            grad_x.mul_(ctx.kept())
        return gradients[0], grad_x, None, None, None, None, None, None, None


class _Whole(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_KTI: Tensor, weight: Views, bias: Views | None, rows: Rows, anchor: Tensor
    ) -> Tensor:
        weight_KOI = weight[0][rows]
        ctx.save_for_backward(x_KTI, weight_KOI)
        ctx.weight, ctx.bias, ctx.rows = weight[1], None if bias is None else bias[1], rows
        if bias is None:
            return torch.bmm(x_KTI, weight_KOI.transpose(1, 2))
        bias_K1O = bias[0][rows].unsqueeze(1)
        return torch.baddbmm(bias_K1O, x_KTI, weight_KOI.transpose(1, 2))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x_KTI, weight_KOI = ctx.saved_tensors
        grad_KTO = gradients[0]
        _add(ctx.weight, ctx.rows, grad_KTO.transpose(1, 2), x_KTI)
        if ctx.bias is not None:
            ones_K1T = grad_KTO.new_ones(len(grad_KTO), 1, grad_KTO.shape[1])
            _add(ctx.bias.unsqueeze(1), ctx.rows, ones_K1T, grad_KTO)
        grad_x = torch.bmm(grad_KTO, weight_KOI) if ctx.needs_input_grad[0] else None
        return grad_x, None, None, None, None


def _add(into: Tensor, rows: Rows, left: Tensor, right: Tensor) -> None:
    """`into[rows] += left @ right`."""
    product = torch.bmm(left, right)
    if isinstance(rows, slice):
        into[rows].add_(product)
    else:
        into.index_add_(0, rows, product.to(into.dtype))
