"""The pack that is on the base now, and the slots in it.

It is made when slots have come or gone, and taken off before anything else uses the base.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch

from peft_jobs.base.loading import Base
from peft_jobs.base.snapshot import Snapshot
from peft_jobs.device.memory import is_out_of_memory, peak_memory, release
from peft_jobs.device.precision import use_tf32
from peft_jobs.engines.packed.calibration import Room
from peft_jobs.engines.packed.eligibility import dtype_of
from peft_jobs.engines.packed.layout import make_layout, row_size
from peft_jobs.engines.packed.pack import Pack
from peft_jobs.engines.packed.packed_trial import Slot
from peft_jobs.methods.method import checkpoint_activations

SPARE = 0.95
"""Of a GPU's memory is planned with; its allocator loses some to fragments."""
UNLIMITED = 1 << 30
ROWS = 4
"""Of a slot: values, gradients and AdamW's moments."""


class Composition:
    """Slots on a base; without a pack between `dissolve` or `keep` and the next `compose`."""

    def __init__(self) -> None:
        self.slots: list[Slot] = []
        self._pack: Pack | None = None
        self._snapshot: Snapshot | None = None
        self._measuring = ExitStack()
        self._peaks: Callable[[], dict[str, int]] = dict
        self._resident: dict[str, int] = {}
        self._rooms: dict[str, Room] = {}
        """By base."""
        self._itemsizes: dict[str, int] = {}
        """Bytes of a parameter, by base."""

    @property
    def pack(self) -> Pack:
        assert self._pack is not None, "compose comes first"
        return self._pack

    def holds(self, slots: Sequence[Slot]) -> bool:
        """Whether these slots, and no others, are in a pack now."""
        return list(slots) == self.slots and (self._pack is not None or not slots)

    def compose(self, slots: Sequence[Slot]) -> None:
        """Put a pack of these slots on their base. What memory is too small for is taken off.

        It is tried again with what the slots have on the CPU: beside the pack, that may be what
        memory is too small for.
        """
        self.keep(slots)
        if self.slots and not self._composed(is_last=False):
            for slot in self.slots:
                slot.move_aside()
            release(self.slots[0].base.device)
            self._composed(is_last=True)

    def keep(self, slots: Sequence[Slot]) -> None:
        """Take the pack off and let go of the other slots."""
        self.dissolve()
        self.slots = list(slots)

    def clear(self) -> None:
        """Take the pack off and let go of all slots, with all that they have."""
        for slot in self.slots:
            slot.forget()
        self.keep([])

    def dissolve(self) -> None:
        """The base as it was; the slots keep what they have."""
        self.measure()
        for slot in self.slots:
            slot.move_out()
        self._measuring.close()
        self._peaks = dict
        if self._snapshot is not None:
            self._snapshot.restore()
        self._pack = self._snapshot = None

    def measure(self) -> None:
        """Let the slots know the memory peaks of this composition so far, and learn from them."""
        allocated = self._let_know().get("peak_allocated_bytes")
        if allocated is not None and all(slot.has_stepped for slot in self.slots):
            base = self.slots[0].base
            state = self._state_bytes(base, self.pack.layout.size)
            self._room(base).saw(allocated, len(self.slots), state)

    @contextmanager
    def unplanned(self) -> Iterator[None]:
        """Memory that is used in the block says nothing of how many slots there is room for."""
        self.measure()
        try:
            yield
        finally:
            self._measure_anew()

    def room(self, slots: Sequence[Slot]) -> int:
        """The number of slots that fit their base's device, as far as is known, where each has as
        much room as a pack of `slots` gives it."""
        base = slots[0].base
        if base.device.type != "cuda":
            return UNLIMITED
        if self._pack is not None:
            self.measure()
        free, _ = torch.cuda.mem_get_info(base.device)
        free += torch.cuda.memory_reserved(base.device)
        state = self._state_bytes(base, self._row_size(slots))
        return self._room(base).slots(int(free * SPARE), state)

    def _room(self, base: Base) -> Room:
        if base.key not in self._rooms:
            self._rooms[base.key] = Room(torch.cuda.memory_allocated(base.device))
        return self._rooms[base.key]

    def _row_size(self, slots: Sequence[Slot]) -> int:
        if self._pack is not None and self.holds(slots):
            return self._pack.layout.size
        return row_size(max(slot.rank for slot in slots), (slot.shapes for slot in slots))

    def _state_bytes(self, base: Base, size: int) -> int:
        """Memory of a slot's rows of `size` parameters."""
        if base.key not in self._itemsizes:
            self._itemsizes[base.key] = dtype_of(base).itemsize
        return ROWS * size * self._itemsizes[base.key]

    def _measure_anew(self) -> None:
        """What peaks there were say nothing of the steps that follow."""
        self._let_know()
        device = self.slots[0].base.device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def _let_know(self) -> dict[str, int]:
        """The pack's peaks, as they were, and with each slot's share of what was added."""
        peaks, found = self._peaks(), {}
        for name, value in peaks.items():
            added = max(0, value - self._resident[name])
            found[name] = self._resident[name] + added // len(self.slots)
            found[name.replace("peak_", "pack_peak_")] = value
        for slot in self.slots:
            slot.saw_peaks(found)
        return peaks

    def _composed(self, is_last: bool) -> bool:
        """False if memory was too small, which raises at the last time."""
        base = self.slots[0].base
        try:
            self._watch(base)
            self._put_on(base)
        except BaseException as error:
            self.dissolve()
            if is_last or not is_out_of_memory(error):
                raise
            return False  # the error holds tensors for as long as it is handled
        self._measure_anew()
        return True

    def _watch(self, base: Base) -> None:
        self._peaks = self._measuring.enter_context(peak_memory(base.device))
        self._resident = self._peaks()

    def _put_on(self, base: Base) -> None:
        slots = self.slots
        adapted = {name for slot in slots for name in slot.parts.adapted}
        whole = {name for slot in slots for name in slot.parts.whole}
        layout = make_layout(max(slot.rank for slot in slots), adapted, whole, base.model)
        self._snapshot = Snapshot.of(base.model)
        self._pack = Pack(base.model, layout, len(slots), dtype_of(base))
        if any(slot.spec.training.gradient_checkpointing for slot in slots):
            checkpoint_activations(base.model)
        use_tf32(slots[0].spec.training)
        base.model.train()
        for number, slot in enumerate(slots):
            slot.move_in(self._pack, number)
