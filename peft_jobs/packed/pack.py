"""Pack: the flat state of K trials on one base, and the layers that use it.

A module that some slot adapts is replaced by one that adds all slots' updates to the base's output
in two batched products, whatever K; a head that is trained whole is K heads in one product. The
parameters of a slot are one row of `values`, their gradients one row of `gradients`: layers see
views of all rows, optimizers see single rows.

Dimensions: K slots, T tokens of a slot (rows times padded length), R rank, I and O a module's
inputs and outputs, P a row's parameters.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from peft_jobs.packed.layout import Layout, Part, Place, by_module
from peft_jobs.quantized import QUANTIZED

Named = dict[tuple[str, Part], Tensor]
"""A trial's tensors by module and part, at its own rank."""


MaskSource = Callable[[str, int, torch.dtype], Tensor]
"""(module, width, dtype) -> dropout factors [K, T, I]."""


class Mask:
    """Dropout of one step; each module's factors are drawn once, so recomputation sees the same."""

    def __init__(self, source: MaskSource) -> None:
        self._source = source
        self._drawn: dict[str, Tensor] = {}

    def of(self, module: str, x: Tensor) -> Tensor:
        """The factors of `module` for its input `x` [K, T, I]."""
        if module not in self._drawn:
            self._drawn[module] = self._source(module, x.shape[-1], x.dtype)
        return self._drawn[module]


class Pack:
    """Layers on `model` and the rows behind them. `remove` leaves the model as it was."""

    def __init__(
        self, model: nn.Module, layout: Layout, num_slots: int, dtype: torch.dtype
    ) -> None:
        device = next(model.parameters()).device
        self.model, self.layout = model, layout
        self.values_KP = torch.zeros(num_slots, layout.size, dtype=dtype, device=device)
        self.gradients_KP = torch.zeros_like(self.values_KP)
        self.scales_K = torch.zeros(num_slots, dtype=dtype, device=device)
        """alpha / r of each slot, or alpha / sqrt(r)."""
        self.rows: Tensor | None = None
        """The slots that take part in this step, int64; None for all."""
        self.alone: int | None = None
        """The one slot to which all rows of the batch belong, in an evaluation."""
        self.mask: Mask | None = None
        self._parts: dict[str, dict[Part, nn.Parameter]] = {}
        self._replaced: list[tuple[nn.Module, str, nn.Module]] = []
        for name, places in by_module(layout).items():
            self._parts[name] = {part: self._leaf(place) for part, place in places.items()}
            kind = PackedAdapter if "lora_A" in places else PackedWhole
            self._replace(name, kind(self._base_layer(name), name, self))

    def parts(self, module: str) -> dict[Part, Tensor]:
        """The module's tensors of the slots at work: [K, *shape]."""
        parts: dict[Part, Tensor] = dict(self._parts[module])
        if self.rows is not None:
            parts = {part: tensor.index_select(0, self.rows) for part, tensor in parts.items()}
        return parts

    def part_alone(self, module: str, part: Part, slot: int) -> Tensor:
        """One slot's tensor: [*shape]."""
        return self._parts[module][part][slot]

    def scales(self) -> Tensor:
        """Of the slots at work, [K, 1, 1]."""
        scales_K = self.scales_K if self.rows is None else self.scales_K[self.rows]
        return scales_K.view(-1, 1, 1)

    def row(self, slot: int, values: Tensor) -> Named:
        """A row of `values` [K, P] as tensors, which are views, by module and part."""
        return {
            (place.module, place.part): values[slot, place.start : place.stop].view(place.shape)
            for place in self.layout.places
        }

    @contextmanager
    def evaluating(self, slot: int) -> Iterator[None]:
        """Within the block the model is the trial of `slot`, for any batch."""
        self.alone = slot
        try:
            yield
        finally:
            self.alone = None

    @contextmanager
    def stepping(self, slots: Sequence[int], mask: Mask | None) -> Iterator[None]:
        """Within the block the model takes a batch of `slots`' rows, one slot after the other."""
        if list(slots) != list(range(len(self.values_KP))):
            self.rows = torch.tensor(slots, device=self.values_KP.device)
        self.mask = mask
        try:
            yield
        finally:
            self.rows, self.mask = None, None

    def remove(self) -> None:
        """Put the base's own layers back."""
        for parent, name, layer in self._replaced:
            setattr(parent, name, layer)
        self._replaced.clear()

    def _leaf(self, place: Place) -> nn.Parameter:
        shape = (len(self.values_KP), *place.shape)
        leaf = nn.Parameter(self.values_KP[:, place.start : place.stop].view(shape))
        leaf.grad = self.gradients_KP[:, place.start : place.stop].view(shape)
        return leaf

    def _base_layer(self, name: str) -> nn.Module:
        return self.model.get_submodule(name)

    def _replace(self, name: str, layer: nn.Module) -> None:
        parent_name, _, child = name.rpartition(".")
        parent = self.model.get_submodule(parent_name)
        self._replaced.append((parent, child, getattr(parent, child)))
        setattr(parent, child, layer)


class PackedAdapter(nn.Module):
    """A frozen linear layer with the LoRA updates of all slots."""

    def __init__(self, base_layer: nn.Module, name: str, pack: Pack) -> None:
        super().__init__()
        self.base_layer, self.name, self.pack = base_layer, name, pack
        self.train(base_layer.training)

    def forward(self, x: Tensor) -> Tensor:
        """[rows, S, I] -> [rows, S, O]; the casts are those of PEFT's own LoRA layers."""
        result: Tensor = self.base_layer(x)
        pack = self.pack
        if not torch.is_autocast_enabled(x.device.type) or not isinstance(
            self.base_layer, QUANTIZED
        ):
            x = x.to(pack.values_KP.dtype)
        update = self._alone(x, pack.alone) if pack.alone is not None else self._packed(x)
        if isinstance(self.base_layer, QUANTIZED):
            update = update.to(result.dtype)
        return (result + update.view_as(result)).to(result.dtype)

    def _alone(self, x: Tensor, slot: int) -> Tensor:
        down = self.pack.part_alone(self.name, "lora_A", slot)
        up = self.pack.part_alone(self.name, "lora_B", slot)
        return linear(linear(x, down), up) * self.pack.scales_K[slot]

    def _packed(self, x: Tensor) -> Tensor:
        pack, parts = self.pack, self.pack.parts(self.name)
        down_KRI, up_KOR = parts["lora_A"], parts["lora_B"]
        x_KTI = x.reshape(len(down_KRI), -1, x.shape[-1])
        if pack.mask is not None:
            x_KTI = x_KTI * pack.mask.of(self.name, x_KTI)
        low_KTR = torch.bmm(x_KTI, down_KRI.transpose(1, 2))
        return torch.bmm(low_KTR, up_KOR.transpose(1, 2)) * pack.scales()


class PackedWhole(nn.Module):
    """A linear layer that every slot trains whole: K layers in one product."""

    def __init__(self, base_layer: nn.Module, name: str, pack: Pack) -> None:
        super().__init__()
        self.base_layer, self.name, self.pack = base_layer, name, pack

    def forward(self, x: Tensor) -> Tensor:
        """[rows, ..., I] -> [rows, ..., O]; in float32 inside, as the base sees it outside."""
        pack, expected = self.pack, x.dtype
        x = x.to(pack.values_KP.dtype)
        if pack.alone is not None:
            weight = pack.part_alone(self.name, "weight", pack.alone)
            bias = self._bias_alone(pack.alone)
            return linear(x, weight, bias).to(expected)
        parts = pack.parts(self.name)
        weight_KOI = parts["weight"]
        x_KTI = x.reshape(len(weight_KOI), -1, x.shape[-1])
        result_KTO = torch.bmm(x_KTI, weight_KOI.transpose(1, 2))
        if "bias" in parts:
            result_KTO = result_KTO + parts["bias"].unsqueeze(1)
        return result_KTO.view(*x.shape[:-1], -1).to(expected)

    def _bias_alone(self, slot: int) -> Tensor | None:
        has_bias = getattr(self.base_layer, "bias", None) is not None
        return self.pack.part_alone(self.name, "bias", slot) if has_bias else None
