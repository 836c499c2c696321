"""DoRA of all slots on one layer: LoRA whose rows of weights have lengths of their own.

A slot's weight is m (W + s B A) / |W + s B A|, row by row, where the length is a constant to the
gradient (Liu et al. 2024, arXiv 2402.09353, section 4.3). No slot's weight is ever there as a
matrix: the squares of the lengths are |W|^2 + 2 s B (W A^T) + s^2 B (A A^T) B^T, whose products are
as many whatever K is.

Dimensions: K slots at work, T tokens of a slot, R rank, I and O a module's inputs and outputs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from peft_jobs.base.quantization import weight_of
from peft_jobs.engines.packed.forms.accumulation import Kept, Rows, Views, add, add_product
from peft_jobs.engines.packed.forms.packed_layer import PackedLayer
from peft_jobs.engines.packed.layout import Part, Place

if TYPE_CHECKING:
    from peft_jobs.engines.packed.pack import Pack


class PackedDora(PackedLayer):
    """A frozen linear layer with DoRA, or LoRA, of all slots."""

    def __init__(
        self, base_layer: nn.Module, name: str, pack: "Pack", places: dict[Part, Place]
    ) -> None:
        super().__init__(base_layer, name, pack)
        self.places = places["lora_A"], places["lora_B"]
        self.magnitude = places["magnitude"]
        self._lengths: tuple[object, Tensor] | None = None
        """Of rows of weights, [K, O], and when they were found."""

    def forward(self, x: Tensor) -> Tensor:
        """[rows, S, I] -> [rows, S, O]; the casts are those of PEFT's own DoRA layers."""
        result: Tensor = self.base_layer(x)
        pack = self.pack
        dtype = pack.product_dtype(x)
        down, up = (pack.views(place, dtype) for place in self.places)
        magnitudes, gradients = pack.views(self.magnitude)
        is_mixed = dtype != magnitudes.dtype
        seen = x.dtype if is_mixed and self.is_quantized else magnitudes.dtype
        lengths_KO = self._row_lengths().to(seen)
        owners_K1 = pack.owners(self.magnitude).unsqueeze(1)
        x_KTI = self.by_slot(x.to(dtype))
        terms = _Terms(
            down,
            up,
            gradients,
            gains_KO=torch.where(owners_K1, magnitudes[pack.rows] / lengths_KO, 1.0),
            slopes_KO=torch.where(owners_K1, 1 / lengths_KO, 0.0),
            scales_K=pack.cast_scales(self.name, dtype),
            bias=getattr(self.base_layer, "bias", None),
            weight=lambda: weight_of(self.base_layer).to(seen).to(dtype),
            rows=pack.rows,
            kept=pack.kept(self.name, x_KTI),
            factors_K=pack.factors_K,
        )
        out: Tensor = _Dora.apply(self.by_slot(result), x_KTI, pack.anchor, terms)  # type: ignore[no-untyped-call]
        if not (is_mixed and self.is_quantized):
            out = out.to(result.dtype)
        return out.view_as(result)

    @torch.no_grad()
    def _row_lengths(self) -> Tensor:
        """Of the slots at work, in the dtype of the values; found once while those stay."""
        pack = self.pack
        if self._lengths is None or self._lengths[0] != pack.state:
            (down, _), (up, _) = (pack.views(place) for place in self.places)
            scales_K = pack.scales_MK[pack.numbers[self.name]][pack.rows]
            weight_OI = weight_of(self.base_layer).to(down.dtype)
            with torch.autocast(down.device.type, enabled=False):
                found = row_lengths(weight_OI, down[pack.rows], up[pack.rows], scales_K)
            self._lengths = pack.state, found
        return self._lengths[1]


def row_lengths(weight_OI: Tensor, down_KRI: Tensor, up_KOR: Tensor, scales_K: Tensor) -> Tensor:
    """Of the rows of `W + scale * B A` of each slot: [K, O]."""
    num_slots, rank, width = down_KRI.shape
    scales_K11 = scales_K.view(-1, 1, 1)
    own_O = torch.linalg.vector_norm(weight_OI, dim=1).square()
    between_KRO = (down_KRI.reshape(-1, width) @ weight_OI.T).view(num_slots, rank, -1)
    gram_KRR = torch.bmm(down_KRI, down_KRI.transpose(1, 2))
    added_KOR = torch.baddbmm(2 * between_KRO.transpose(1, 2), up_KOR * scales_K11, gram_KRR)
    added_KO = added_KOR.mul_(up_KOR).sum(dim=2)
    squares_KO = torch.addcmul(own_O, added_KO, scales_K.view(-1, 1))
    return squares_KO.clamp_(min=0.0).sqrt_()


@dataclass(frozen=True)
class _Terms:
    """All of the layer that autograd does not see."""

    down: Views
    up: Views
    into_magnitudes: Tensor
    gains_KO: Tensor
    """Magnitude / length of each row; 1 in slots of LoRA."""
    slopes_KO: Tensor
    """Of the gains by the magnitudes; 0 in slots of LoRA."""
    scales_K: Tensor
    """With what makes up for dropout."""
    bias: Tensor | None
    weight: Callable[[], Tensor]
    """[O, I] in the dtype of the products; found again for the backward."""
    rows: Rows
    kept: Kept | None
    factors_K: Tensor | None
    """What makes up for dropout, where some slot drops."""


class _Dora(torch.autograd.Function):
    """`result + (gain - 1) * base + gain * scale * (x A^T) B^T`.

    `base` is what the base's weight gives of that part of `x` that is kept: `result` without its
    bias where a slot drops nothing.
    """

    @staticmethod
    def forward(
        ctx: Any, result_KTO: Tensor, x_KTI: Tensor, anchor: Tensor, terms: _Terms
    ) -> Tensor:
        base_KTO = result_KTO if terms.bias is None else result_KTO - terms.bias
        if terms.kept is not None:
            assert terms.factors_K is not None
            x_KTI = x_KTI * terms.kept()
            factors_K11 = terms.factors_K.view(-1, 1, 1)
            dropped_KTO = (x_KTI @ terms.weight().T) * factors_K11
            base_KTO = torch.where(factors_K11 != 1, dropped_KTO, base_KTO)
        down_KRI, up_KOR = terms.down[0][terms.rows], terms.up[0][terms.rows]
        low_KTR = torch.bmm(x_KTI, down_KRI.transpose(1, 2)).mul_(terms.scales_K.view(-1, 1, 1))
        update_KTO = torch.bmm(low_KTR, up_KOR.transpose(1, 2))
        gains_K1O = terms.gains_KO.unsqueeze(1)
        ctx.save_for_backward(x_KTI, low_KTR, down_KRI, up_KOR, base_KTO + update_KTO)
        ctx.terms = terms
        return result_KTO + (gains_K1O - 1) * base_KTO + gains_K1O * update_KTO

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x_KTI, low_KTR, down_KRI, up_KOR, direction_KTO = ctx.saved_tensors
        terms: _Terms = ctx.terms
        grad_KTO, dtype = gradients[0], x_KTI.dtype
        moved_KO = (grad_KTO * direction_KTO).sum(dim=1)
        add(terms.into_magnitudes, terms.rows, moved_KO * terms.slopes_KO)
        gains_K1O = terms.gains_KO.unsqueeze(1)
        spread_KTO = grad_KTO * (gains_K1O - 1)
        grad_update_KTO = (grad_KTO * gains_K1O).to(dtype)
        add_product(terms.up[1], terms.rows, grad_update_KTO.transpose(1, 2), low_KTR)
        grad_low_KTR = torch.bmm(grad_update_KTO, up_KOR).mul_(terms.scales_K.view(-1, 1, 1))
        add_product(terms.down[1], terms.rows, grad_low_KTR.transpose(1, 2), x_KTI)
        grad_x = torch.bmm(grad_low_KTR, down_KRI) if ctx.needs_input_grad[1] else None
        if terms.kept is not None:
            assert terms.factors_K is not None
            factors_K11 = terms.factors_K.view(-1, 1, 1)
            if grad_x is not None:
                own_KTO = torch.where(factors_K11 != 1, spread_KTO * factors_K11, 0.0)
                grad_x = (grad_x + own_KTO.to(dtype) @ terms.weight()).mul_(terms.kept())
            spread_KTO = torch.where(factors_K11 != 1, 0.0, spread_KTO)
        return grad_KTO + spread_KTO, grad_x, None, None
