"""The pack that is on the base now, and the trials in it.

It is made when trials have come or gone, and taken off before anything else uses the base.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch

from peft_jobs.base.loading import Base
from peft_jobs.base.snapshot import Snapshot
from peft_jobs.device.memory import RanOut, peak_memory, release, tried
from peft_jobs.device.precision import use_tf32
from peft_jobs.engines.packed.calibration import Room
from peft_jobs.engines.packed.eligibility import dtype_of
from peft_jobs.engines.packed.layout import make_layout, row_size
from peft_jobs.engines.packed.pack import Pack
from peft_jobs.engines.packed.packed_trial import PackedTrial
from peft_jobs.methods.method import checkpoint_activations

PLANNED_SHARE = 0.95
"""Share of a GPU's memory that slots may use; the rest is left for fragmentation."""
UNLIMITED = 1 << 30
ROWS = 4
"""Of a trial: values, gradients and AdamW's moments."""


class Composition:
    """Trials on a base; without a pack between `dissolve` or `keep` and the next `compose`."""

    def __init__(self) -> None:
        self.trials: list[PackedTrial] = []
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

    def holds(self, trials: Sequence[PackedTrial]) -> bool:
        """Whether these trials, and no others, are in a pack now."""
        return list(trials) == self.trials and (self._pack is not None or not trials)

    def compose(self, trials: Sequence[PackedTrial]) -> None:
        """Put a pack of these trials on their base. What memory is too small for is taken off.

        It is tried again with what the trials have on the CPU: beside the pack, that may be what
        memory is too small for.
        """
        self.keep(trials)
        if self.trials and not self._composed(is_last=False):
            for trial in self.trials:
                trial.move_aside()
            release(self.trials[0].base.device)
            self._composed(is_last=True)

    def keep(self, trials: Sequence[PackedTrial]) -> None:
        """Take the pack off and let go of the other trials."""
        self.dissolve()
        self.trials = list(trials)

    def clear(self) -> None:
        """Take the pack off and let go of all trials, with all that they have."""
        for trial in self.trials:
            trial.forget()
        self.keep([])

    def dissolve(self) -> None:
        """The base as it was; the trials keep what they have."""
        self.measure()
        for trial in self.trials:
            trial.move_out()
        self._measuring.close()
        self._peaks = dict
        if self._snapshot is not None:
            self._snapshot.restore()
        self._pack = self._snapshot = None

    def measure(self) -> None:
        """Let the trials know the memory peaks of this composition so far, and learn from them."""
        allocated = self._let_know().get("peak_allocated_bytes")
        if allocated is not None and all(trial.has_stepped for trial in self.trials):
            base = self.trials[0].base
            state = self._state_bytes(base, self.pack.layout.size)
            self._room(base).saw(allocated, len(self.trials), state)

    @contextmanager
    def unplanned(self) -> Iterator[None]:
        """Memory that is used in the block says nothing of how many trials there is room for."""
        self.measure()
        try:
            yield
        finally:
            self._measure_anew()

    def room(self, trials: Sequence[PackedTrial]) -> int:
        """The number of trials that fit their base's device, as far as is known, where each has as
        much room as a pack of `trials` gives it."""
        base = trials[0].base
        if base.device.type != "cuda":
            return UNLIMITED
        if self._pack is not None:
            self.measure()
        free, _ = torch.cuda.mem_get_info(base.device)
        free += torch.cuda.memory_reserved(base.device)
        state = self._state_bytes(base, self._row_size(trials))
        return self._room(base).slots(int(free * PLANNED_SHARE), state)

    def _room(self, base: Base) -> Room:
        if base.key not in self._rooms:
            self._rooms[base.key] = Room(torch.cuda.memory_allocated(base.device))
        return self._rooms[base.key]

    def _row_size(self, trials: Sequence[PackedTrial]) -> int:
        if self._pack is not None and self.holds(trials):
            return self._pack.layout.size
        return row_size(max(trial.rank for trial in trials), (trial.shapes for trial in trials))

    def _state_bytes(self, base: Base, size: int) -> int:
        """Memory of a trial's rows of `size` parameters."""
        if base.key not in self._itemsizes:
            self._itemsizes[base.key] = dtype_of(base).itemsize
        return ROWS * size * self._itemsizes[base.key]

    def _measure_anew(self) -> None:
        """What peaks there were say nothing of the steps that follow."""
        self._let_know()
        device = self.trials[0].base.device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

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

    def _composed(self, is_last: bool) -> bool:
        """False if memory was too small, which raises at the last time."""
        base = self.trials[0].base

        def put_on() -> None:
            try:
                self._watch(base)
                self._put_on(base)
            except BaseException:
                self.dissolve()
                raise
            self._measure_anew()

        if is_last:
            put_on()
            return True
        return not isinstance(tried(put_on), RanOut)

    def _watch(self, base: Base) -> None:
        self._peaks = self._measuring.enter_context(peak_memory(base.device))
        self._resident = self._peaks()

    def _put_on(self, base: Base) -> None:
        trials = self.trials
        adapted = {name for trial in trials for name in trial.parts.adapted}
        whole = {name for trial in trials for name in trial.parts.whole}
        layout = make_layout(max(trial.rank for trial in trials), adapted, whole, base.model)
        self._snapshot = Snapshot.of(base.model)
        self._pack = Pack(base.model, layout, len(trials), dtype_of(base))
        if any(trial.spec.training.gradient_checkpointing for trial in trials):
            checkpoint_activations(base.model)
        use_tf32(trials[0].spec.training)
        base.model.train()
        for number, trial in enumerate(trials):
            trial.move_in(self._pack, number)
