"""MiSS of all slots on one layer: sums over shards of the inputs, times a matrix of the slot's.

A slot's sums are its inputs times a frozen matrix of zeros and ones, [inputs, r]: every r-th input
goes into the same sum (Kang and Yin 2024, arXiv 2409.15371, and PEFT's `MissLinear`). The matrix is
one for all layers, so the sums of a slot without MiSS on this one are made zero: its block, which
is zero too, would be trained.

Dimensions: K slots at work, T tokens of a slot, R rank, I and O a module's inputs and outputs.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from peft_jobs.engines.packed.forms.accumulation import Kept, Rows, Views, add_product
from peft_jobs.engines.packed.forms.packed_layer import PackedLayer
from peft_jobs.engines.packed.layout import Part, Place

if TYPE_CHECKING:
    from peft_jobs.engines.packed.pack import Pack


class PackedMiss(PackedLayer):
    """A frozen linear layer with the MiSS updates of all slots."""

    def __init__(
        self, base_layer: nn.Module, name: str, pack: "Pack", places: dict[Part, Place]
    ) -> None:
        super().__init__(base_layer, name, pack)
        self.place = places["block"]

    def forward(self, x: Tensor) -> Tensor:
        """[rows, S, I] -> [rows, S, O]; the casts are those of PEFT's own MiSS layers."""
        result: Tensor = self.base_layer(x)
        pack = self.pack
        dtype = pack.product_dtype(x)
        x_KTI = self.by_slot(x.to(dtype))
        update: Tensor = _Shards.apply(  # type: ignore[no-untyped-call]
            x_KTI,
            pack.anchor,
            pack.frozen("shards", dtype)[..., : x.shape[-1]],
            pack.views(self.place, dtype),
            pack.owners(self.place),
            pack.rows,
            pack.kept(self.name, x_KTI),
            pack.factors_K,
        )
        return (result + update.view_as(result)).to(x.dtype)


class _Shards(torch.autograd.Function):
    """`(x S^T) B`; of `x` only what is kept enters."""

    @staticmethod
    def forward(
        ctx: Any,
        x_KTI: Tensor,
        anchor: Tensor,
        shards_KRI: Tensor,
        block: Views,
        owners_K: Tensor,
        rows: Rows,
        kept: Kept | None,
        factors_K: Tensor | None,
    ) -> Tensor:
        if kept is not None:
            assert factors_K is not None
            x_KTI = x_KTI * kept() * factors_K.to(x_KTI.dtype).view(-1, 1, 1)
        shards_KRI = torch.where(owners_K.view(-1, 1, 1), shards_KRI, 0.0)
        sums_KTR = torch.bmm(x_KTI, shards_KRI.transpose(1, 2))
        block_KRO = block[0][rows]
        ctx.save_for_backward(sums_KTR, shards_KRI, block_KRO)
        ctx.into, ctx.rows, ctx.kept, ctx.factors_K = block[1], rows, kept, factors_K
        return torch.bmm(sums_KTR, block_KRO)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        sums_KTR, shards_KRI, block_KRO = ctx.saved_tensors
        grad_KTO = gradients[0].to(sums_KTR.dtype)
        add_product(ctx.into, ctx.rows, sums_KTR.transpose(1, 2), grad_KTO)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = torch.bmm(torch.bmm(grad_KTO, block_KRO.transpose(1, 2)), shards_KRI)
            if ctx.kept is not None:
                factors_K = ctx.factors_K.to(grad_x.dtype)
                grad_x.mul_(ctx.kept()).mul_(factors_K.view(-1, 1, 1))
        return grad_x, None, None, None, None, None, None, None
