"""(IA)3 of all slots on one layer: its inputs or its outputs, each times a number of the slot's.

Dimensions: K slots at work, T tokens of a slot, D the width of what is scaled.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from peft_jobs.engines.packed.forms.accumulation import Rows, add
from peft_jobs.engines.packed.forms.packed_layer import PackedLayer
from peft_jobs.engines.packed.layout import Part, Place

if TYPE_CHECKING:
    from peft_jobs.engines.packed.pack import Pack


class PackedScaling(PackedLayer):
    """A frozen linear layer; some slots scale what goes in, others what comes out."""

    def __init__(
        self, base_layer: nn.Module, name: str, pack: "Pack", places: dict[Part, Place]
    ) -> None:
        super().__init__(base_layer, name, pack)
        self.inputs, self.outputs = places.get("scaled_inputs"), places.get("scaled_outputs")

    def forward(self, x: Tensor) -> Tensor:
        """[rows, ..., I] -> [rows, ..., O]; the casts are those of PEFT's own (IA)3 layers, which
        are others on a quantized layer."""
        is_mixed, came = torch.is_autocast_enabled(x.device.type), x.dtype
        if self.is_quantized and not is_mixed and came != torch.float32:
            x = x.float()
        if self.inputs is not None:
            scaled = self._scaled(x, self.inputs)
            x = scaled if self.is_quantized else scaled.to(came)
        result: Tensor = self.base_layer(x)
        if self.outputs is None:
            return result
        found = self._scaled(result, self.outputs)
        return found if self.is_quantized and is_mixed else found.to(result.dtype)

    def _scaled(self, x: Tensor, place: Place) -> Tensor:
        pack = self.pack
        values_KD, gradients_KD = (state.flatten(1) for state in pack.views(place))
        owners_K1 = pack.owners(place).unsqueeze(1)
        scales_KD = torch.where(owners_K1, values_KD[pack.rows], 1.0)
        found: Tensor = _Scaled.apply(  # type: ignore[no-untyped-call]
            self.by_slot(x), pack.anchor, scales_KD, gradients_KD, owners_K1, pack.rows
        )
        return found.view_as(x)


class _Scaled(torch.autograd.Function):
    """`x * scale`, in the wider type of both."""

    @staticmethod
    def forward(
        ctx: Any,
        x_KTD: Tensor,
        anchor: Tensor,
        scales_KD: Tensor,
        into_KD: Tensor,
        owners_K1: Tensor,
        rows: Rows,
    ) -> Tensor:
        ctx.save_for_backward(x_KTD, scales_KD, owners_K1)
        ctx.into, ctx.rows = into_KD, rows
        return x_KTD * scales_KD.unsqueeze(1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x_KTD, scales_KD, owners_K1 = ctx.saved_tensors
        found_KD = (gradients[0] * x_KTD).sum(dim=1)
        add(ctx.into, ctx.rows, torch.where(owners_K1, found_KD, 0.0))
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (gradients[0] * scales_KD.unsqueeze(1)).to(x_KTD.dtype)
        return grad_x, None, None, None, None, None
