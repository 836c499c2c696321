"""VeRA of all slots on one layer: two vectors of each between frozen random matrices.

The matrices are the slot's (its rank, its `projection_prng_key`), and the same for all layers, of
which each takes as much as it is wide (Kopiczko et al. 2023, arXiv 2310.11454, and PEFT's
`VeraModel`). A slot that has no VeRA here has zeros, which add nothing.

Dimensions: K slots at work, T tokens of a slot, R rank, I and O a module's inputs and outputs.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from peft_jobs.engines.packed.forms.accumulation import Kept, Rows, Views, add
from peft_jobs.engines.packed.forms.packed_layer import PackedLayer
from peft_jobs.engines.packed.layout import Part, Place

if TYPE_CHECKING:
    from peft_jobs.engines.packed.pack import Pack


class PackedVera(PackedLayer):
    """A frozen linear layer with the VeRA updates of all slots."""

    def __init__(
        self, base_layer: nn.Module, name: str, pack: "Pack", places: dict[Part, Place]
    ) -> None:
        super().__init__(base_layer, name, pack)
        self.places = places["lambda_d"], places["lambda_b"]

    def forward(self, x: Tensor) -> Tensor:
        """[rows, S, I] -> [rows, S, O]; the casts are those of PEFT's own VeRA layers."""
        result: Tensor = self.base_layer(x)
        pack = self.pack
        dtype = pack.product_dtype(x)
        x_KTI = self.by_slot(x.to(dtype))
        down, up = (pack.views(place) for place in self.places)
        down_KRI, up_KOR = (pack.frozen(part, dtype) for part in ("vera_A", "vera_B"))
        update: Tensor = _Vera.apply(  # type: ignore[no-untyped-call]
            x_KTI,
            pack.anchor,
            down_KRI[..., : x.shape[-1]],
            up_KOR[:, : result.shape[-1]],
            down,
            up,
            pack.rows,
            pack.kept(self.name, x_KTI),
            pack.factors_K,
        )
        return (result + update.view_as(result)).to(result.dtype).to(x.dtype)


class _Vera(torch.autograd.Function):
    """`b * (d * (x A^T)) B^T`; of `x` only what is kept enters."""

    @staticmethod
    def forward(
        ctx: Any,
        x_KTI: Tensor,
        anchor: Tensor,
        down_KRI: Tensor,
        up_KOR: Tensor,
        lambda_d: Views,
        lambda_b: Views,
        rows: Rows,
        kept: Kept | None,
        factors_K: Tensor | None,
    ) -> Tensor:
        d_K1R, b_K1O = lambda_d[0][rows].unsqueeze(1), lambda_b[0][rows].unsqueeze(1)
        if kept is not None:
            assert factors_K is not None
            x_KTI = x_KTI * kept()
            d_K1R = d_K1R * factors_K.view(-1, 1, 1)
        low_KTR = torch.bmm(x_KTI, down_KRI.transpose(1, 2))
        middle_KTR = (low_KTR * d_K1R).to(x_KTI.dtype)
        high_KTO = torch.bmm(middle_KTR, up_KOR.transpose(1, 2))
        ctx.save_for_backward(low_KTR, high_KTO, d_K1R, b_K1O, down_KRI, up_KOR)
        ctx.into = lambda_d[1], lambda_b[1]
        ctx.rows, ctx.kept, ctx.factors_K = rows, kept, factors_K
        return b_K1O * high_KTO

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        low_KTR, high_KTO, d_K1R, b_K1O, down_KRI, up_KOR = ctx.saved_tensors
        into_d, into_b = ctx.into
        grad_KTO, dtype = gradients[0], low_KTR.dtype
        add(into_b, ctx.rows, (grad_KTO * high_KTO).sum(dim=1))
        grad_middle_KTR = torch.bmm((grad_KTO * b_K1O).to(dtype), up_KOR)
        found_KR = (grad_middle_KTR * low_KTR).sum(dim=1)
        if ctx.kept is not None:
            found_KR = found_KR * ctx.factors_K.view(-1, 1)
        add(into_d, ctx.rows, found_KR)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = torch.bmm((grad_middle_KTR * d_K1R).to(dtype), down_KRI)
            if ctx.kept is not None:
                grad_x.mul_(ctx.kept())
        return grad_x, None, None, None, None, None, None, None, None
