"""Pack: the flat state of up to K trials on one base, and the layers that use it.

A module that some slot adapts is replaced by one that does so for all slots in batched products, as
many whatever K is (`forms`); a head that is trained whole is K heads in one product. The parameters
of a slot are one row of `values`, their gradients one row of `gradients`: layers see views of all
rows, optimizers see single rows.

Dimensions: K slots, M modules with LoRA, L places that one slot has and another has not, P a row's
parameters, F what a row holds and does not train.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from peft_jobs.base_dropout import KeyedBaseDropout, has_dropout
from peft_jobs.dropout_masks import MaskColumns, layer_of
from peft_jobs.engines.packed.forms import layer_of_forms
from peft_jobs.engines.packed.forms.accumulation import Kept, Rows, Views
from peft_jobs.engines.packed.layout import (
    Layout,
    Named,
    Part,
    Place,
    Shapes,
    by_module,
    features,
)
from peft_jobs.engines.packed.slot_masks import SlotMasks
from peft_jobs.randomness import dropout_module_key

OPTIONAL: tuple[Part, ...] = ("magnitude", "scaled_inputs", "scaled_outputs", "block")
"""Parts of which zeros would change a row of the batch, or would be trained."""
DROPPING: frozenset[Part] = frozenset({"lora_A", "lambda_d", "block"})
"""Parts of the forms that have dropout."""


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
        self.frozen_KF = torch.zeros(num_slots, layout.frozen_size, dtype=dtype, device=device)
        modules = [place.module for place in layout.places if place.part == "lora_A"]
        self.numbers = {name: number for number, name in enumerate(modules)}
        """Of the modules with LoRA, M of them."""
        self.scales_MK = torch.zeros(len(modules), num_slots, dtype=dtype, device=device)
        """alpha / r of each module in each slot, or alpha / sqrt(r)."""
        optional = [place for place in layout.places if place.part in OPTIONAL]
        self._optional = {place: number for number, place in enumerate(optional)}
        self.owners_LK = torch.zeros(len(optional), num_slots, dtype=torch.bool, device=device)
        """Which slots have a place; a layer leaves the rows of the others as they are."""
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
        self._step_owners_LK = self.owners_LK
        self._cast: Tensor | None = None
        self._is_cast = False
        self._cast_scales: Tensor | None = None
        self._cast_frozen: Tensor | None = None
        self._num_changes = 0
        """Of values, since there is this pack."""
        self.state: tuple[object, ...] = ()
        """Equal where the same slots are at work and have the same values."""
        self.masks: SlotMasks | None = None
        self.factors_K: Tensor | None = None
        """What makes up for dropout in the slots of this step; None where no slot drops."""
        self.recomputing: list[Any] = []
        """Modules that compute their activations again in steps of trials that ask for it."""
        self.keyed = KeyedBaseDropout(model) if has_dropout(model) else None
        """Of a base that drops activations itself."""
        self.anchor = nn.Parameter(torch.zeros((), dtype=dtype, device=device))
        """Makes autograd visit the layers, which add to `gradients_KP` themselves."""
        self._widths: dict[str, int] = {}
        """Inputs of each module that may drop of them."""
        self._layers: dict[str, nn.Module] = {}
        for name, places in by_module(layout).items():
            base_layer = model.get_submodule(name)
            if places.keys() & DROPPING:
                self._widths[name] = features(base_layer)[0]
            self._layers[name] = layer_of_forms(base_layer, name, self, places)

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
        flat = (self.values_KP, self.gradients_KP, *self.moments_KP, self.frozen_KF)
        for state in (*flat, self.counts_K3):
            state[slot].zero_()
        self.scales_MK[:, slot] = self.max_norms_K[slot] = 0.0
        self.owners_LK[:, slot] = False
        self.taken.discard(slot)

    def fill_frozen(self, slot: int, named: Named) -> None:
        """Have a slot hold these tensors, which its trial does not train."""
        if self.layout.frozen:
            self.layout.fill_frozen(self.frozen_KF[slot], named)
            self._cast_frozen = None

    def own(self, slot: int, shapes: Shapes) -> None:
        """Have a slot own those of the optional places that are in `shapes`."""
        if self._optional:
            owned = [(place.module, place.part) in shapes for place in self._optional]
            self.owners_LK[:, slot] = torch.tensor(owned)

    def owners(self, place: Place) -> Tensor:
        """Of the slots of this step, which have an optional place: bool [K]."""
        return self._step_owners_LK[self._optional[place]]

    def views(self, place: Place, dtype: torch.dtype | None = None) -> Views:
        """Values and gradients of all slots at one place: [K, *shape] each. The values are in
        `dtype`, if one is given: all are cast at once, when `values_changed` was called since."""
        gradients = _at(place, self.gradients_KP)
        if dtype is None or dtype == self.values_KP.dtype:
            return _at(place, self.values_KP), gradients
        if self._cast is None or self._cast.dtype != dtype:
            self._cast, self._is_cast = torch.empty_like(self.values_KP, dtype=dtype), False
        if not self._is_cast:
            used = 1 + max(self.taken, default=0)
            self._cast[:used].copy_(self.values_KP[:used])
            self._is_cast = True
        return _at(place, self._cast), gradients

    def frozen(self, part: Part, dtype: torch.dtype) -> Tensor:
        """What the slots of this step hold and do not train: [K, *shape]."""
        held = self.frozen_KF
        if dtype != held.dtype:
            if self._cast_frozen is None or self._cast_frozen.dtype != dtype:
                self._cast_frozen = held.to(dtype)
            held = self._cast_frozen
        place = next(place for place in self.layout.frozen if place.part == part)
        return _at(place, held)[self.rows]

    def values_changed(self) -> None:
        """Values have been written, by an optimizer or a newcomer."""
        self._is_cast = False
        self._num_changes += 1

    def product_dtype(self, x: Tensor) -> torch.dtype:
        """Of the products of a layer that is given `x`."""
        if torch.is_autocast_enabled(x.device.type):
            return torch.get_autocast_dtype(x.device.type)
        return self.values_KP.dtype

    def kept(self, module: str, x_KTI: Tensor) -> Kept | None:
        """Draws what is kept of the inputs of a module; None where no slot drops anything."""
        return None if self.masks is None else partial(self.masks, module, x_KTI.shape[1])

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
        widths = self._widths
        keys = {name: dropout_module_key(name) for name in widths}
        layers = {name: layer_of(name) for name in widths}
        return MaskColumns(widths, keys, layers, self.values_KP.device)

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
        self._step_owners_LK = self.owners_LK[:, self.rows]
        self.state = (self._num_changes, *slots)
        self.factors_K = None
        if masks is not None:
            self.factors_K = masks.factors_K.to(self.scales_MK.dtype)
            self.step_scales_MK = self.step_scales_MK * self.factors_K
        self._cast_scales = None
        try:
            yield
        finally:
            self.rows, self.masks = slice(0, len(self.values_KP)), None
            self.step_scales_MK, self._cast_scales = self.scales_MK, None
            self._step_owners_LK = self.owners_LK


def _at(place: Place, rows_KP: Tensor) -> Tensor:
    return rows_KP[:, place.start : place.stop].view(len(rows_KP), *place.shape)
