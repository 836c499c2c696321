"""Where a trial's parameters lie in its row of the pack's flat state.

Every slot has one row with room for every module that any slot adapts, at the pack's rank: a slot
of lower rank leaves the rest of its room at zero, where it stays (no gradient, no decay of zero).
Decayed parameters come first, so that a row is two slices for the optimizer, or three where B has a
learning rate of its own.

Dimensions: R the pack's rank, I and O a module's inputs and outputs.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

Part = Literal["lora_A", "lora_B", "weight", "bias"]
Named = dict[tuple[str, Part], Tensor]
"""A trial's tensors by module and part, at its own rank."""
_ORDER: tuple[Part, ...] = ("lora_A", "weight", "lora_B", "bias")
"""Of the places: those that the optimizer treats alike side by side."""
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
    fast: int
    """Where B begins, to which LoRA+ gives a learning rate of its own."""
    decayed: int
    """Length of the first slice, to which weight decay applies; biases follow, fast ones too."""

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
                _cut(_room(place, row), value.shape).copy_(value)

    def parts(self, row: Tensor, own: Mapping[tuple[str, Part], Sequence[int]]) -> Named:
        """Views of the tensors of a row that have the shapes `own`, without the room beyond."""
        found: Named = {}
        for place in self.places:
            shape = own.get((place.module, place.part))
            if shape is not None:  # or it is another slot's
                found[place.module, place.part] = _cut(_room(place, row), shape)
        return found


def _cut(room: Tensor, shape: Sequence[int]) -> Tensor:
    return room[tuple(slice(0, length) for length in shape)]


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
    found: dict[Part, list[tuple[str, Sequence[int]]]] = {part: [] for part in _ORDER}
    for name in sorted(adapted):
        inputs, outputs = features(model.get_submodule(name))
        found["lora_A"].append((name, (rounded, inputs)))
        found["lora_B"].append((name, (outputs, rounded)))
    for name in sorted(whole):
        for own, parameter in model.get_submodule(name).named_parameters():
            found["bias" if own == "bias" else "weight"].append((name, parameter.shape))
    places: list[Place] = []
    starts: dict[Part, int] = {}
    for part in _ORDER:
        starts[part] = places[-1].stop if places else 0
        for module, shape in found[part]:
            start = places[-1].stop if places else 0
            places.append(Place(module, part, tuple(shape), start))
    return Layout(rounded, tuple(places), starts["lora_B"], starts["bias"])


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
    if isinstance(module, Conv1D):
        return int(linear.nx), int(linear.nf)
    return int(linear.in_features), int(linear.out_features)
