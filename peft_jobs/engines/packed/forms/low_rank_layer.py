"""LoRA of all slots on one layer, in two batched products whatever their number.

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


class PackedLora(PackedLayer):
    """A frozen linear layer with the LoRA updates of all slots."""

    def __init__(
        self, base_layer: nn.Module, name: str, pack: "Pack", places: dict[Part, Place]
    ) -> None:
        super().__init__(base_layer, name, pack)
        self.places = places["lora_A"], places["lora_B"]

    def forward(self, x: Tensor) -> Tensor:
        """[rows, S, I] -> [rows, S, O]; the casts are those of PEFT's own LoRA layers."""
        result: Tensor = self.base_layer(x)
        pack = self.pack
        dtype = pack.product_dtype(x)
        x_KTI = self.by_slot(x.to(dtype))
        down, up = (pack.views(place, dtype) for place in self.places)
        out: Tensor = _LowRank.apply(  # type: ignore[no-untyped-call]
            self.by_slot(result),
            x_KTI,
            down,
            up,
            pack.cast_scales(self.name, dtype),
            pack.rows,
            pack.anchor,
            result.dtype if self.is_quantized else dtype,
            pack.kept(self.name, x_KTI),
        )
        return out.view_as(result)


class _LowRank(torch.autograd.Function):
    """`result + scale * (x A^T) B^T` in the dtype of `result`.

    The products are in the dtype of `x`, values and scales; of `x` only what is `kept` enters. What
    is added is rounded to `sum_dtype` before.
    """

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
        add_product(into_up, ctx.rows, grad_KTO.transpose(1, 2), low_KTR)
        grad_low_KTR = torch.bmm(grad_KTO, up_KOR).mul_(scales_K11)
        add_product(into_down, ctx.rows, grad_low_KTR.transpose(1, 2), x_KTI)
        grad_x = torch.bmm(grad_low_KTR, down_KRI) if ctx.needs_input_grad[1] else None
        if grad_x is not None and ctx.kept is not None:
            grad_x.mul_(ctx.kept())
        return gradients[0], grad_x, None, None, None, None, None, None, None
