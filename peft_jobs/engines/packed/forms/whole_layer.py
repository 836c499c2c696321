"""A head that is trained whole: K linear layers in one product.

Dimensions: K slots at work, T tokens of a slot, I and O a module's inputs and outputs.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from peft_jobs.engines.packed.forms.accumulation import Rows, Views, add_product
from peft_jobs.engines.packed.layout import Part, Place

if TYPE_CHECKING:
    from peft_jobs.engines.packed.pack import Pack


class PackedWhole(nn.Module):
    """A linear layer that every slot trains whole."""

    def __init__(
        self, base_layer: nn.Module, name: str, pack: "Pack", places: dict[Part, Place]
    ) -> None:
        super().__init__()
        self.base_layer, self.name, self.pack = base_layer, name, pack
        self.places, self.weight = places, pack.views(places["weight"])

    def forward(self, x: Tensor) -> Tensor:
        """[rows, ..., I] -> [rows, ..., O]; in float32 inside, as the base sees it outside."""
        pack, expected = self.pack, x.dtype
        dtype = pack.product_dtype(x)
        weight = pack.views(self.places["weight"], dtype)
        bias = pack.views(self.places["bias"], dtype) if "bias" in self.places else None
        result_KTO: Tensor = _Whole.apply(  # type: ignore[no-untyped-call]
            x.to(dtype).reshape(pack.num_at_work, -1, x.shape[-1]),
            weight,
            bias,
            pack.rows,
            pack.anchor,
        )
        return result_KTO.view(*x.shape[:-1], -1).to(expected)


class _Whole(torch.autograd.Function):
    """`x W^T + b` of each slot, in the dtype of `x`."""

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
        add_product(ctx.weight, ctx.rows, grad_KTO.transpose(1, 2), x_KTI)
        if ctx.bias is not None:
            ones_K1T = grad_KTO.new_ones(len(grad_KTO), 1, grad_KTO.shape[1])
            add_product(ctx.bias.unsqueeze(1), ctx.rows, ones_K1T, grad_KTO)
        grad_x = torch.bmm(grad_KTO, weight_KOI) if ctx.needs_input_grad[0] else None
        return grad_x, None, None, None, None
