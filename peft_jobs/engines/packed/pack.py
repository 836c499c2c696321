"""Pack: the flat state of up to K trials on one base, and the layers that use it.

A module that some slot adapts is replaced by one that adds all slots' updates to the base's output
in two batched products, whatever K; a head that is trained whole is K heads in one product. The
parameters of a slot are one row of `values`, their gradients one row of `gradients`: layers see
views of all rows, optimizers see single rows.

Dimensions: K slots, M adapted modules, T tokens of a slot (rows times padded length), R rank, I and
O a module's inputs and outputs, P a row's parameters.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from peft_jobs.base.quantization import QUANTIZED
from peft_jobs.base_dropout import KeyedBaseDropout, has_dropout
from peft_jobs.dropout_masks import MaskColumns, layer_of
from peft_jobs.engines.packed.layout import Layout, Part, Place, by_module
from peft_jobs.engines.packed.lora_products import Rows, low_rank_update, whole_linear
from peft_jobs.engines.packed.slot_masks import SlotMasks
from peft_jobs.randomness import dropout_module_key


class Pack:
    """Rows, and layers that use them; `put_on` puts these on `model`, a Snapshot takes them off."""

    def __init__(
        self, model: nn.Module, layout: Layout, num_slots: int, dtype: torch.dtype
    ) -> None:
        device = next(model.parameters()).device
        self.model, self.layout = model, layout
        self.values_KP = torch.zeros(num_slots, layout.size, dtype=dtype, device=device)
        self.gradients_KP = torch.zeros_like(self.values_KP)
        self.moments_KP = (torch.zeros_like(self.values_KP), torch.zeros_like(self.values_KP))
        """AdamW's first and second."""
        modules = [place.module for place in layout.places if place.part == "lora_A"]
        self.numbers = {name: number for number, name in enumerate(modules)}
        """Of the adapted modules, M of them."""
        self.scales_MK = torch.zeros(len(modules), num_slots, dtype=dtype, device=device)
        """alpha / r of each module in each slot, or alpha / sqrt(r)."""
        self.max_norms_K = torch.zeros(num_slots, dtype=dtype, device=device)
        """To which each slot's gradients are clipped; 0 where they are not."""
        self.counts_K3 = torch.zeros(num_slots, 3, device=device)
        """Steps of each slot's optimizer, of the slices of its row."""
        self.taken: set[int] = set()
        """Slots with a trial. The rows of the others are zero."""
        self.rows: Rows = slice(0, num_slots)
        """The slots that take part in this step."""
        self.step_scales_MK = self.scales_MK
        """Of these slots, with what makes up for dropout."""
        self._cast: Tensor | None = None
        self._is_cast = False
        self._cast_scales: Tensor | None = None
        self.alone: int | None = None
        """The one slot to which all rows of the batch belong, in an evaluation."""
        self.masks: SlotMasks | None = None
        self.recomputing: list[Any] = []
        """Modules that compute their activations again in steps of trials that ask for it."""
        self.keyed = KeyedBaseDropout(model) if has_dropout(model) else None
        """Of a base that drops activations itself."""
        self.anchor = nn.Parameter(torch.zeros((), dtype=dtype, device=device))
        """Makes autograd visit the layers, which add to `gradients_KP` themselves."""
        self._layers: dict[str, nn.Module] = {}
        for name, places in by_module(layout).items():
            kind = PackedAdapter if "lora_A" in places else PackedWhole
            self._layers[name] = kind(model.get_submodule(name), name, self, places)

    @property
    def again(self) -> Any:
        """What `checkpoint_activations` takes, so that what is computed again drops the same."""
        keyed = self.keyed
        return None if keyed is None else lambda: (nullcontext(), keyed)

    def put_on(self) -> None:
        """Put the layers in the place of those that they adapt, which must be there."""
        for name, layer in self._layers.items():
            parent, _, child = name.rpartition(".")
            setattr(self.model.get_submodule(parent), child, layer)

    @property
    def free_slots(self) -> list[int]:
        """Slots without a trial, the first one first."""
        return [slot for slot in range(len(self.values_KP)) if slot not in self.taken]

    def free(self, slot: int) -> None:
        """A trial has left: nothing of it stays in the row."""
        for state in (self.values_KP, self.gradients_KP, *self.moments_KP, self.counts_K3):
            state[slot].zero_()
        self.scales_MK[:, slot] = self.max_norms_K[slot] = 0.0
        self.taken.discard(slot)

    def views(self, place: Place) -> tuple[Tensor, Tensor]:
        """Values and gradients of all slots at one place: [K, *shape] each."""
        return _at(place, self.values_KP), _at(place, self.gradients_KP)

    def cast_values(self, place: Place, dtype: torch.dtype) -> Tensor:
        """Values of all slots at one place in `dtype`: [K, *shape]. All places are cast at once,
        when `values_changed` was called since."""
        if dtype == self.values_KP.dtype:
            return _at(place, self.values_KP)
        if self._cast is None or self._cast.dtype != dtype:
            self._cast, self._is_cast = torch.empty_like(self.values_KP, dtype=dtype), False
        if not self._is_cast:
            used = 1 + max(self.taken, default=0)
            self._cast[:used].copy_(self.values_KP[:used])
            self._is_cast = True
        return _at(place, self._cast)

    def values_changed(self) -> None:
        """Values have been written, by an optimizer or a newcomer."""
        self._is_cast = False

    @property
    def num_at_work(self) -> int:
        """Slots of this step."""
        return self.step_scales_MK.shape[1]

    def cast_scales(self, module: str, dtype: torch.dtype) -> Tensor:
        """Of a module: [K], in `dtype`; all are cast once in a step."""
        if self._cast_scales is None or self._cast_scales.dtype != dtype:
            self._cast_scales = self.step_scales_MK.to(dtype)
        return self._cast_scales[self.numbers[module]]

    @cached_property
    def mask_columns(self) -> MaskColumns:
        """Of the adapted modules; made when a slot drops something."""
        widths = {p.module: p.shape[1] for p in self.layout.places if p.part == "lora_A"}
        keys = {name: dropout_module_key(name) for name in widths}
        layers = {name: layer_of(name) for name in widths}
        return MaskColumns(widths, keys, layers, self.values_KP.device)

    @contextmanager
    def evaluating(self, slot: int) -> Iterator[None]:
        """Within the block the model is the trial of `slot`, for any batch."""
        self.alone = slot
        try:
            yield
        finally:
            self.alone = None

    def recompute(self, asked: bool) -> None:
        """Have steps compute activations again, or keep them."""
        for module in self.recomputing:
            module.gradient_checkpointing = asked

    @contextmanager
    def stepping(self, slots: Sequence[int], masks: SlotMasks | None) -> Iterator[None]:
        """Within the block the model takes a batch of `slots`' rows, one slot after the other."""
        first, last = slots[0], slots[-1]
        if list(slots) == list(range(first, last + 1)):
            self.rows = slice(first, last + 1)
        else:
            self.rows = torch.tensor(slots, device=self.values_KP.device)
        self.masks, self.step_scales_MK = masks, self.scales_MK[:, self.rows]
        if masks is not None:
            self.step_scales_MK = self.step_scales_MK * masks.factors_K.to(self.scales_MK.dtype)
        self._cast_scales = None
        try:
            yield
        finally:
            self.rows, self.masks = slice(0, len(self.values_KP)), None
            self.step_scales_MK, self._cast_scales = self.scales_MK, None


def _at(place: Place, rows_KP: Tensor) -> Tensor:
    return rows_KP[:, place.start : place.stop].view(len(rows_KP), *place.shape)


class PackedAdapter(nn.Module):
    """A frozen linear layer with the LoRA updates of all slots."""

    def __init__(
        self, base_layer: nn.Module, name: str, pack: Pack, places: dict[Part, Place]
    ) -> None:
        super().__init__()
        self.base_layer, self.name, self.pack = base_layer, name, pack
        self.places = places["lora_A"], places["lora_B"]
        self.down, self.up = (pack.views(place) for place in self.places)
        self.is_quantized = isinstance(base_layer, QUANTIZED)
        self.train(base_layer.training)

    @property
    def weight(self) -> Any:
        """The base's, at whose type some architectures look."""
        return self.base_layer.weight

    def forward(self, x: Tensor) -> Tensor:
        """[rows, S, I] -> [rows, S, O]; the casts are those of PEFT's own LoRA layers."""
        result: Tensor = self.base_layer(x)
        pack = self.pack
        mixed = torch.is_autocast_enabled(x.device.type)
        dtype = torch.get_autocast_dtype(x.device.type) if mixed else pack.values_KP.dtype
        if pack.alone is not None:
            if not mixed or not self.is_quantized:
                x = x.to(pack.values_KP.dtype)
            update = linear(linear(x, self.down[0][pack.alone]), self.up[0][pack.alone])
            update = update * pack.scales_MK[pack.numbers[self.name], pack.alone]
            if self.is_quantized:
                update = update.to(result.dtype)
            return (result + update).to(result.dtype)
        scales_K = pack.cast_scales(self.name, dtype)
        x_KTI = x.to(dtype).reshape(len(scales_K), -1, x.shape[-1])
        kept = None if pack.masks is None else partial(pack.masks, self.name, x_KTI.shape[1])
        down, up = (
            (pack.cast_values(place, dtype), gradients)
            for place, (_, gradients) in zip(self.places, (self.down, self.up), strict=True)
        )
        result_KTO = result.reshape(len(scales_K), -1, result.shape[-1])
        sum_dtype = result.dtype if self.is_quantized else dtype
        return low_rank_update(
            result_KTO, x_KTI, down, up, scales_K, pack.rows, pack.anchor, sum_dtype, kept
        ).view_as(result)


class PackedWhole(nn.Module):
    """A linear layer that every slot trains whole: K layers in one product."""

    def __init__(
        self, base_layer: nn.Module, name: str, pack: Pack, places: dict[Part, Place]
    ) -> None:
        super().__init__()
        self.base_layer, self.name, self.pack = base_layer, name, pack
        self.places, self.weight = places, pack.views(places["weight"])
        self.bias = pack.views(places["bias"]) if "bias" in places else None

    def forward(self, x: Tensor) -> Tensor:
        """[rows, ..., I] -> [rows, ..., O]; in float32 inside, as the base sees it outside."""
        pack, expected = self.pack, x.dtype
        if pack.alone is not None:
            x = x.to(pack.values_KP.dtype)
            own = None if self.bias is None else self.bias[0][pack.alone]
            return linear(x, self.weight[0][pack.alone], own).to(expected)
        mixed = torch.is_autocast_enabled(x.device.type)
        dtype = torch.get_autocast_dtype(x.device.type) if mixed else pack.values_KP.dtype
        x_KTI = x.to(dtype).reshape(pack.num_at_work, -1, x.shape[-1])
        weight = pack.cast_values(self.places["weight"], dtype), self.weight[1]
        bias = None
        if self.bias is not None:
            bias = pack.cast_values(self.places["bias"], dtype), self.bias[1]
        result_KTO = whole_linear(x_KTI, weight, bias, pack.rows, pack.anchor)
        return result_KTO.view(*x.shape[:-1], -1).to(expected)
