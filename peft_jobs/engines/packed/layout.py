"""Where a trial's parameters lie in its row of the pack's flat state.

Every slot has one row with room for every module that any slot adapts, at the pack's rank: a slot
of lower rank leaves the rest of its room at zero, where it stays (no gradient, no decay of zero).
Decayed parameters come first, so that a row is two slices for the optimizer.

Dimensions: R the pack's rank, I and O a module's inputs and outputs.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

Part = Literal["lora_A", "lora_B", "weight", "bias"]
Named = dict[tuple[str, Part], Tensor]
"""A trial's tensors by module and part, at its own rank."""
RANKS = (8, 16, 32, 64, 128)


@dataclass(frozen=True)
class Place:
    """One tensor of one module in a row."""

    module: str
    part: Part
    shape: tuple[int, ...]
    start: int

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def stop(self) -> int:
        return self.start + self.size


@dataclass(frozen=True)
class Layout:
    """All places of a row, in order."""

    rank: int
    places: tuple[Place, ...]
    decayed: int
    """Length of the first slice, to which weight decay applies."""

    @property
    def size(self) -> int:
        return self.places[-1].stop if self.places else 0

    def covers(self, shapes: Mapping[tuple[str, Part], Sequence[int]]) -> bool:
        """Whether a row has room for tensors of these shapes."""
        rooms = {(place.module, place.part): place.shape for place in self.places}
        return all(
            place in rooms
            and all(own <= room for own, room in zip(shape, rooms[place], strict=True))
            for place, shape in shapes.items()
        )

    def fill(self, row: Tensor, named: Named) -> None:
        """Make a row hold these tensors, and zeros beside them; a GPU's in one transfer."""
        if row.is_cuda and named and all(value.device.type == "cpu" for value in named.values()):
            pinned = torch.empty(row.shape, dtype=row.dtype, pin_memory=True)
            self.fill(pinned, named)
            row.copy_(pinned, non_blocking=True)
            return
        row.zero_()
        for place in self.places:
            value = named.get((place.module, place.part))
            if value is not None:
                _room(place, row)[tuple(slice(0, length) for length in value.shape)].copy_(value)

    def parts(self, row: Tensor, own: Collection[tuple[str, Part]], r: int) -> Named:
        """Views of the tensors `own` of a row, without the room beyond the rank `r`."""
        found: Named = {}
        for place in self.places:
            if (place.module, place.part) not in own:
                continue  # another slot's
            tensor = _room(place, row)
            if place.part == "lora_A":
                tensor = tensor[:r]
            elif place.part == "lora_B":
                tensor = tensor[:, :r]
            found[place.module, place.part] = tensor
        return found


def _room(place: Place, row: Tensor) -> Tensor:
    return row[place.start : place.stop].view(place.shape)


def make_layout(
    rank: int, adapted: Iterable[str], whole: Iterable[str], model: nn.Module
) -> Layout:
    """The layout for LoRA on the modules `adapted` and full copies of the linear modules `whole`.

    `rank` is the highest of the slots; it is rounded up to one of RANKS, so that most changes of
    rows change no shape.
    """
    rounded = _rounded(rank)
    decayed: list[tuple[str, Part, Sequence[int]]] = []
    biases: list[tuple[str, Part, Sequence[int]]] = []
    for name in sorted(adapted):
        inputs, outputs = features(model.get_submodule(name))
        decayed += [(name, "lora_A", (rounded, inputs)), (name, "lora_B", (outputs, rounded))]
    for name in sorted(whole):
        for part, parameter in model.get_submodule(name).named_parameters():
            if part == "bias":
                biases.append((name, "bias", parameter.shape))
            else:
                decayed.append((name, "weight", parameter.shape))
    places: list[Place] = []
    for module, part, shape in [*decayed, *biases]:
        start = places[-1].stop if places else 0
        places.append(Place(module, part, tuple(shape), start))
    length = sum(place.size for place in places[: len(decayed)])
    return Layout(rounded, tuple(places), length)


def row_size(rank: int, trials: Iterable[Mapping[tuple[str, Part], Sequence[int]]]) -> int:
    """The size of the layout for trials whose own parameters have these shapes; `rank` as there."""
    shapes: dict[tuple[str, Part], Sequence[int]] = {}
    for trial in trials:
        shapes.update(trial)
    size = 0
    for (_, part), shape in shapes.items():
        if part == "lora_A":
            size += _rounded(rank) * shape[1]
        elif part == "lora_B":
            size += shape[0] * _rounded(rank)
        else:
            size += math.prod(shape)
    return size


def _rounded(rank: int) -> int:
    return next((room for room in RANKS if room >= rank), rank)


def by_module(layout: Layout) -> Mapping[str, dict[Part, Place]]:
    """The places of each module by part."""
    found: dict[str, dict[Part, Place]] = {}
    for place in layout.places:
        found.setdefault(place.module, {})[place.part] = place
    return found


def features(module: nn.Module) -> tuple[int, int]:
    """Inputs and outputs of a linear module, quantized or not."""
    linear: Any = module
    return int(linear.in_features), int(linear.out_features)
