"""How many slots of a pack fit a GPU's memory: predicted at first, then learned from the peaks of
steps.

The state of a slot, the memory of a pack's row, is known. What steps need beside it has a part that
all slots share (weights that are dequantized, a chunk of logits) and one for each slot; they follow
from the peaks of steps of different numbers.
"""

from collections.abc import Mapping
from statistics import linear_regression
from types import MappingProxyType

import torch

PLANNED_SHARE = 0.95
"""Share of a GPU's memory that slots may use; the rest is left for fragmentation."""


def available_bytes(device: torch.device) -> int:
    """Of a GPU, what this process may use, or uses already."""
    memory = torch.get_device_module(device)
    free, _ = memory.mem_get_info(device)
    return int((free + memory.memory_reserved(device)) * PLANNED_SHARE)


class SlotRoom:
    """Of one base. Before steps have been measured or predicted there is room for one slot."""

    def __init__(
        self, resident_bytes: int, predicted: Mapping[int, int] = MappingProxyType({})
    ) -> None:
        """What is resident without any slot; and, by number of slots, what steps are predicted to
        take beside it and all rows, which holds until steps have been measured."""
        self.resident_bytes = resident_bytes
        self._predicted = predicted
        self._beside: dict[int, int] = {}
        """By number of slots, the most that steps took beside what is resident and all rows."""

    def saw(self, peak_bytes: int, num_slots: int, state_bytes: int) -> None:
        """The peak of steps with so many slots, beside rows of `state_bytes` in all."""
        beside = max(0, peak_bytes - self.resident_bytes - state_bytes)
        self._beside[num_slots] = max(beside, self._beside.get(num_slots, 0))

    def parts(self) -> tuple[float, float]:
        """Bytes that all slots share, and bytes of each: a line through the peaks, by least
        squares, raised until none is above it.

        Of one number of slots, all is taken for theirs; and where more slots took no more, as the
        longest batches came earlier, so is what the most of them took.
        """
        peaks = self._beside or self._predicted
        most = max(peaks)
        each = peaks[most] / most
        if len(peaks) > 1:
            slope = linear_regression(list(peaks), list(peaks.values())).slope
            each = slope if slope > 0 else each
        shared = max(beside - slots * each for slots, beside in peaks.items())
        return max(0.0, shared), each

    def slots(self, available_bytes: int, state_bytes: int) -> int:
        """Slots with a state of `state_bytes` each for which `available_bytes`, the resident ones
        among them, are enough; one at least."""
        if not (self._beside or self._predicted):
            return 1
        shared, each = self.parts()
        free = available_bytes - self.resident_bytes - shared
        return max(1, int(free // max(1.0, state_bytes + each)))

    def takes(self, available_bytes: int, num_slots: int, state_bytes: int) -> bool:
        """Whether steps of so many slots fit beside rows of `state_bytes` in all."""
        if not (self._beside or self._predicted):
            return num_slots == 1
        shared, each = self.parts()
        return self.resident_bytes + state_bytes + shared + num_slots * each <= available_bytes
