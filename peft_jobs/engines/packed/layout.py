"""Where a trial's parameters lie in its row of the pack's flat state.

Every slot has one row with room for every module that any slot adapts, at the pack's rank: a slot
of lower rank leaves the rest of its room at zero, where it stays (no gradient, no decay of zero).
Decayed parameters come first, so that a row is two slices for the optimizer, or three where some
have a learning rate of their own. What a trial reads and does not train has a row apart.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

Part = Literal[
    "lora_A",
    "lora_B",
    "magnitude",
    "scaled_inputs",
    "scaled_outputs",
    "vera_A",
    "vera_B",
    "lambda_d",
    "lambda_b",
    "shards",
    "block",
    "weight",
    "bias",
]
Named = dict[tuple[str, Part], Tensor]
"""A trial's tensors by module and part, at its own rank."""
Shapes = Mapping[tuple[str, Part], Sequence[int]]
"""Of a trial's tensors, trained or not."""
_USUAL: tuple[Part, ...] = (
    *("lora_A", "weight", "scaled_inputs", "scaled_outputs", "lambda_d", "lambda_b", "block"),
)
_FAST: tuple[Part, ...] = ("lora_B", "magnitude")
"""To which LoRA+ gives a learning rate of their own."""
_ORDER: tuple[Part, ...] = (*_USUAL, *_FAST, "bias")
"""Of the places: those that the optimizer treats alike side by side."""
FROZEN: tuple[Part, ...] = ("vera_A", "vera_B", "shards")
"""What is not trained."""
RANKS = (8, 16, 32, 64, 128)
_RANKED: Mapping[Part, tuple[str, int]] = {
    "lora_A": ("lora", 0),
    "lora_B": ("lora", 1),
    "vera_A": ("vera", 0),
    "vera_B": ("vera", 1),
    "lambda_d": ("vera", 0),
    "shards": ("miss", 0),
    "block": ("miss", 0),
}
"""Parts with a rank among their sizes: which do so together, and which size it is."""


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

    places: tuple[Place, ...]
    fast: int
    """Where those begin to which LoRA+ gives a learning rate of their own."""
    decayed: int
    """Length of the first slices, to which weight decay applies; biases follow, fast ones too."""
    frozen: tuple[Place, ...] = ()
    """Of the row of what is not trained."""

    @property
    def size(self) -> int:
        return self.places[-1].stop if self.places else 0

    @property
    def frozen_size(self) -> int:
        return self.frozen[-1].stop if self.frozen else 0

    def covers(self, shapes: Shapes) -> bool:
        """Whether a row has room for tensors of these shapes."""
        rooms = {(place.module, place.part): place.shape for place in self.places + self.frozen}
        return all(
            place in rooms
            and all(own <= room for own, room in zip(shape, rooms[place], strict=True))
            for place, shape in shapes.items()
        )

    def fill(self, row: Tensor, named: Named) -> None:
        """Make a row hold these tensors, and zeros beside them; a GPU's in one transfer."""
        _fill(self.places, row, named)

    def fill_frozen(self, row: Tensor, named: Named) -> None:
        """The same of a row of what is not trained."""
        _fill(self.frozen, row, named)

    def parts(self, row: Tensor, own: Shapes) -> Named:
        """Views of the tensors of a row that have the shapes `own`, without the room beyond."""
        found: Named = {}
        for place in self.places:
            shape = own.get((place.module, place.part))
            if shape is not None:  # or it is another slot's
                found[place.module, place.part] = _cut(_room(place, row), shape)
        return found


def _fill(places: Sequence[Place], row: Tensor, named: Named) -> None:
    if row.is_cuda and named and all(value.device.type == "cpu" for value in named.values()):
        pinned = torch.empty(row.shape, dtype=row.dtype, pin_memory=True)
        _fill(places, pinned, named)
        row.copy_(pinned, non_blocking=True)
        return
    row.zero_()
    for place in places:
        value = named.get((place.module, place.part))
        if value is not None:
            _cut(_room(place, row), value.shape).copy_(value)


def _cut(room: Tensor, shape: Sequence[int]) -> Tensor:
    return room[tuple(slice(0, length) for length in shape)]


def _room(place: Place, row: Tensor) -> Tensor:
    return row[place.start : place.stop].view(place.shape)


def make_layout(trials: Iterable[Shapes]) -> Layout:
    """The layout with room for trials whose tensors have these shapes.

    All modules have room for the highest rank of any, rounded up to one of RANKS, so that most
    changes of rows change no shape.
    """
    rooms: dict[tuple[str, Part], list[int]] = {}
    ranks: dict[str, int] = {}
    for shapes in trials:
        for place, shape in shapes.items():
            room = rooms.setdefault(place, list(shape))
            rooms[place] = [max(sizes) for sizes in zip(room, shape, strict=True)]
            if place[1] in _RANKED:
                family, dimension = _RANKED[place[1]]
                ranks[family] = max(shape[dimension], ranks.get(family, 0))
    found: dict[Part, list[tuple[str, tuple[int, ...]]]] = {}
    for (module, part), room in sorted(rooms.items()):
        if part in _RANKED:
            family, dimension = _RANKED[part]
            room[dimension] = _rounded(ranks[family])
        found.setdefault(part, []).append((module, tuple(room)))
    places, starts = _side_by_side(_ORDER, found)
    frozen, _ = _side_by_side(FROZEN, found)
    return Layout(places, starts[_FAST[0]], starts["bias"], frozen)


def _side_by_side(
    order: Sequence[Part], found: Mapping[Part, Sequence[tuple[str, tuple[int, ...]]]]
) -> tuple[tuple[Place, ...], dict[Part, int]]:
    """Places of modules and shapes, and where those of each part begin."""
    places: list[Place] = []
    starts: dict[Part, int] = {}
    for part in order:
        starts[part] = places[-1].stop if places else 0
        for module, shape in found.get(part, ()):
            places.append(Place(module, part, shape, places[-1].stop if places else 0))
    return tuple(places), starts


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
