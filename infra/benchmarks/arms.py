"""The arms of the trial-step tables: how trials are put on a resident base.

The engines are the product's. Looped adapters (B4) live here alone, to show what batching is worth.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from graphed import GraphedEngine
from torch import Tensor, nn
from torch.nn.functional import linear

from peft_jobs.base.quantization import QUANTIZED
from peft_jobs.engines.packed.calibration import Calibration
from peft_jobs.engines.packed.composition import Composition
from peft_jobs.engines.packed.forms.low_rank_layer import PackedLora
from peft_jobs.engines.packed.layout import Place, by_module
from peft_jobs.engines.packed.packed_engine import PackedEngine
from peft_jobs.engines.packed.packed_trial import PackedTrial
from peft_jobs.engines.solo.solo_engine import SoloEngine


@dataclass(frozen=True)
class Arm:
    """One way to train; `engine` has the base it uses."""

    name: str
    make: Callable[[SoloEngine, int], Any]
    engine: SoloEngine
    slots: int | None = None
    """The only number of slots that it is measured at; None is all."""

    @classmethod
    def named(cls, text: str, engine: SoloEngine) -> "Arm":
        """From `B5`, or `B5@8` for 8 slots only."""
        name, _, slots = text.partition("@")
        return cls(name, KINDS[name], engine, int(slots) if slots else None)

    @property
    def is_fixed(self) -> bool:
        """Whether what a step has is given, not found out by the engine."""
        return self.make is not auto

    def numbers(self, slots: Sequence[int]) -> Sequence[int]:
        """Of slots, at which it is measured."""
        if self.make in (solo, graphed):
            return [1]
        return slots if self.slots is None else [self.slots]


def solo(engine: SoloEngine, num_slots: int) -> SoloEngine:
    """Arms B1 and B2: the trials one at a time."""
    return engine


def graphed(engine: SoloEngine, num_slots: int) -> GraphedEngine:
    """Arms B1-graphed and B2-graphed: B1 and B2 with each step as one CUDA graph."""
    return GraphedEngine(engine)


def auto(engine: SoloEngine, num_slots: int) -> PackedEngine:
    """Arm B5-auto, on the base of `engine`: how many share a step is the engine's choice."""
    made = PackedEngine(str(engine._resident.cache_dir), num_slots=num_slots)
    made.assemble(engine, made.composition)
    return made


def packed(engine: SoloEngine, num_slots: int) -> PackedEngine:
    """Arm B5, on the base of `engine`."""
    made = auto(engine, num_slots)
    made.rounds.calibration = cast(Calibration, Always())
    return made


def looped(engine: SoloEngine, num_slots: int) -> PackedEngine:
    """Arm B4, on the base of `engine`."""
    made = auto(engine, num_slots)
    made.assemble(engine, LoopedComposition())
    made.rounds.calibration = cast(Calibration, Always())
    return made


KINDS: dict[str, Callable[[SoloEngine, int], Any]] = {
    **dict.fromkeys(("B1", "B2", "B2-compiled"), solo),
    **dict.fromkeys(("B1-graphed", "B2-graphed"), graphed),
    "B4": looped,
    "B5": packed,
    "B5-auto": auto,
}


class Always:
    """In place of the engine's calibration: all slots in every step, whatever they cost."""

    def width(self, work: Hashable, num_slots: int) -> int:
        return num_slots

    def limit(self, work: Hashable) -> None:
        return None

    def saw(self, *measured: Any) -> None:
        """Nothing is learned from it."""


class LoopedAdapter(PackedLora):
    """The pack's layer with one pair of products for each slot, as systems without batching do."""

    def take_rows(self) -> None:
        """Find each slot's own tensors in the pack's rows."""
        places = by_module(self.pack.layout)[self.name]
        self.slots = [
            (self._leaf(slot, places["lora_A"]), self._leaf(slot, places["lora_B"]), scale)
            for slot, scale in enumerate(self.pack.scales_MK[self.pack.numbers[self.name]].tolist())
        ]

    def _leaf(self, slot: int, place: Place) -> nn.Parameter:
        cut = slice(place.start, place.stop)
        leaf = nn.Parameter(self.pack.values_KP[slot, cut].view(place.shape))
        leaf.grad = self.pack.gradients_KP[slot, cut].view(place.shape)
        return leaf

    def forward(self, x: Tensor) -> Tensor:
        pack = self.pack
        if not self.training:
            return super().forward(x)
        result: Tensor = self.base_layer(x)
        quantized = isinstance(self.base_layer, QUANTIZED)
        if not torch.is_autocast_enabled(x.device.type) or not quantized:
            x = x.to(pack.values_KP.dtype)
        at_work = self.slots[pack.rows] if isinstance(pack.rows, slice) else self.slots
        x_KTI = x.reshape(len(at_work), -1, x.shape[-1])
        updates = [
            linear(linear(x_TI, down_RI), up_OR) * scale
            for x_TI, (down_RI, up_OR, scale) in zip(x_KTI, at_work, strict=True)
        ]
        update = torch.stack(updates).view_as(result)
        return (result + update.to(result.dtype)).to(result.dtype)


class LoopedComposition(Composition):
    """A pack with looped adapters, for trials without dropout."""

    def compose(self, trials: Sequence[PackedTrial], most: int = 0) -> None:
        self.dissolve()  # adapters take their rows once
        super().compose(trials)
        for module in self.trials[0].base.model.modules() if self.trials else ():
            if type(module) is PackedLora:
                module.__class__ = LoopedAdapter
                cast(LoopedAdapter, module).take_rows()
