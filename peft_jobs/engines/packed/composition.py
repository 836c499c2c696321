"""The pack that is on the base now, and the trials in it.

It stays while trials come and go: who leaves frees a row, who comes fills one, and nothing of the
others moves. It is made anew, with rows to spare, for a newcomer that it has no row or no room
for, and taken off before anything else uses the base.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from weakref import WeakKeyDictionary

import torch
from transformers import PreTrainedModel

from peft_jobs.base.loading import Base
from peft_jobs.base.snapshot import Snapshot
from peft_jobs.device.memory import RanOut, peak_memory, release, tried
from peft_jobs.device.precision import use_tf32
from peft_jobs.device.slot_room import SlotRoom, available_bytes
from peft_jobs.engines.packed.layout import Layout, make_layout
from peft_jobs.engines.packed.pack import Pack
from peft_jobs.engines.packed.packed_trial import PackedTrial
from peft_jobs.engines.packed.parts import dtype_of
from peft_jobs.methods.method import checkpoint_activations

UNLIMITED = 1 << 30
ROWS = 4
"""Of a trial: values, gradients and AdamW's moments."""


class Composition:
    """Trials on a base; without a pack between `dissolve` and the next `compose`."""

    def __init__(self) -> None:
        self.trials: list[PackedTrial] = []
        """In the order in which they came."""
        self._pack: Pack | None = None
        self._snapshot: Snapshot | None = None
        self._measuring = ExitStack()
        self._peaks: Callable[[], dict[str, int]] = dict
        self._resident: dict[str, int] = {}
        self._rooms: WeakKeyDictionary[PreTrainedModel, SlotRoom] = WeakKeyDictionary()
        self._itemsizes: WeakKeyDictionary[PreTrainedModel, int] = WeakKeyDictionary()
        """Bytes of a parameter."""

    @property
    def pack(self) -> Pack:
        assert self._pack is not None, "compose comes first"
        return self._pack

    def holds(self, trials: Sequence[PackedTrial]) -> bool:
        """Whether these trials, and no others, are in a pack now."""
        return list(trials) == self.trials and (self._pack is not None or not trials)

    def compose(self, trials: Sequence[PackedTrial], most: int = 0) -> None:
        """Have a pack of these trials, the present ones among them, on their base.

        A new pack has rows to spare, up to `most` and a power of two, as far as memory is known to
        be enough. Where it is not, it is tried again with a row for each and what the trials have
        on the CPU: beside the pack, that may be what memory is too small for.
        """
        if self._takes(trials):
            self.measure()
            for trial in trials[len(self.trials) :]:
                trial.move_in(self.pack, self.pack.free_slots[0])
                self.trials.append(trial)
            self._changed()
            return
        self.dissolve()
        self.trials = list(trials)
        spare = min(1 << (len(trials) - 1).bit_length(), most, self.room(trials))
        if not self._composed(max(len(trials), spare), is_last=False):
            for trial in self.trials:
                trial.move_aside()
            release(self.trials[0].base.device)
            self._composed(len(trials), is_last=True)

    def keep(self, trials: Sequence[PackedTrial]) -> None:
        """Let go of the other trials, with all that they have. Their rows are free."""
        if self.trials:
            self.measure()
        for trial in self.trials:
            if trial not in trials:
                if trial.row is not None:
                    self.pack.free(trial.row.slot)
                trial.forget()
        self.trials = list(trials)
        if not self.trials:
            self.dissolve()
        elif self._pack is not None:
            self._changed()

    def clear(self) -> None:
        """Take the pack off and let go of all trials, with all that they have."""
        self.keep([])

    def dissolve(self) -> None:
        """The base as it was; the trials keep what they have."""
        if self.trials:
            self.measure()
        for trial in self.trials:
            trial.move_out()
        self._measuring.close()
        self._peaks = dict
        if self._snapshot is not None:
            self._snapshot.restore()
        self._pack = self._snapshot = None

    @contextmanager
    def bare(self) -> Iterator[None]:
        """Within the block the base is as it was, and the pack's rows hold what they hold."""
        if self._snapshot is not None:
            self._snapshot.restore()
        try:
            yield
        finally:
            if self._pack is not None:
                self._put_on()

    def measure(self) -> None:
        """Let the trials know the memory peaks of this composition so far, and learn from them."""
        allocated = self._let_know().get("peak_allocated_bytes")
        if allocated is not None and all(trial.has_stepped for trial in self.trials):
            base, pack = self.trials[0].base, self.pack
            state = len(pack.values_KP) * self._state_bytes(base, pack.layout)
            self._room(base).saw(allocated, len(self.trials), state)

    @contextmanager
    def unplanned(self) -> Iterator[None]:
        """Memory that is used in the block says nothing of how many trials there is room for."""
        self.measure()
        try:
            yield
        finally:
            self._measure_anew()

    def expect(self, base: Base, beside: Mapping[int, int]) -> SlotRoom:
        """The room on a base, on which no pack is; see SlotRoom for `beside`."""
        resident = torch.get_device_module(base.device).memory_allocated(base.device)
        self._rooms[base.model] = found = SlotRoom(resident, beside)
        return found

    def room(self, trials: Sequence[PackedTrial]) -> int:
        """The number of trials that fit their base's device, as far as is known, where each has as
        much room as a new pack of `trials` gives it."""
        base = trials[0].base
        if base.device.type == "cpu":
            return UNLIMITED
        if self._pack is not None:
            self.measure()
        layout = make_layout(trial.shapes for trial in trials)
        return self._room(base).slots(available_bytes(base.device), self._state_bytes(base, layout))

    def _takes(self, trials: Sequence[PackedTrial]) -> bool:
        """Whether the pack has rows for these trials, and the device memory for their steps."""
        pack = self._pack
        if pack is None or list(trials[: len(self.trials)]) != self.trials:
            return False
        newcomers = trials[len(self.trials) :]
        if len(newcomers) > len(pack.free_slots):
            return False
        if not all(pack.layout.covers(trial.shapes) for trial in newcomers):
            return False
        base = trials[0].base
        if base.device.type == "cpu":
            return True
        state = len(pack.values_KP) * self._state_bytes(base, pack.layout)
        return self._room(base).takes(available_bytes(base.device), len(trials), state)

    def _room(self, base: Base) -> SlotRoom:
        return self._rooms.get(base.model) or self.expect(base, {})

    def _state_bytes(self, base: Base, layout: Layout) -> int:
        """Memory of a trial's rows."""
        if base.model not in self._itemsizes:
            self._itemsizes[base.model] = dtype_of(base).itemsize
        return (ROWS * layout.size + layout.frozen_size) * self._itemsizes[base.model]

    def _changed(self) -> None:
        """Trials have come or gone: settings that all share follow, and peaks are theirs."""
        if self._wants_checkpointing != bool(self.pack.recomputing):
            with self.bare():
                pass
        self._watch(gives_back=False)
        self._measure_anew()

    def _measure_anew(self) -> None:
        """What peaks there were say nothing of the steps that follow."""
        self._let_know()
        for trial in self.trials:
            trial.has_stepped = False
        device = self.trials[0].base.device
        if device.type != "cpu":
            torch.get_device_module(device).reset_peak_memory_stats(device)

    def _let_know(self) -> dict[str, int]:
        """The pack's peaks, as they were, and with each trial's share of what was added."""
        peaks, found = self._peaks(), {}
        for name, value in peaks.items():
            added = max(0, value - self._resident[name])
            found[name] = self._resident[name] + added // len(self.trials)
            found[name.replace("peak_", "pack_peak_")] = value
        for trial in self.trials:
            trial.saw_peaks(found)
        return peaks

    def _composed(self, num_rows: int, is_last: bool) -> bool:
        """False if memory was too small, which raises at the last time."""

        def build() -> None:
            try:
                self._watch(gives_back=True)
                self._resident = self._peaks()
                self._build(num_rows)
            except BaseException:
                self.dissolve()
                raise
            self._measure_anew()

        if is_last:
            build()
            return True
        return not isinstance(tried(build), RanOut)

    def _watch(self, gives_back: bool) -> None:
        self._measuring.close()
        device = self.trials[0].base.device
        self._peaks = self._measuring.enter_context(peak_memory(device, gives_back))

    def _build(self, num_rows: int) -> None:
        trials, base = self.trials, self.trials[0].base
        layout = make_layout(trial.shapes for trial in trials)
        self._snapshot = Snapshot.of(base.model)
        self._pack = Pack(base.model, layout, num_rows, dtype_of(base))
        self._put_on()
        use_tf32(trials[0].spec.training, base.device)
        for slot, trial in enumerate(trials):
            trial.move_in(self._pack, slot)

    @property
    def _wants_checkpointing(self) -> bool:
        return any(trial.spec.training.gradient_checkpointing for trial in self.trials)

    def _put_on(self) -> None:
        self.pack.put_on()
        model, wanted = self.trials[0].base.model, self._wants_checkpointing
        self.pack.recomputing = checkpoint_activations(model, self.pack.again) if wanted else []
        model.train()
