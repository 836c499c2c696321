"""Rounds: every slot that may go on takes one chunk, in steps of as many slots as are best."""

import math
import time
from collections.abc import Callable, Hashable, Sequence

from peft_jobs.memory import is_out_of_memory
from peft_jobs.packed.calibration import Calibration, groups
from peft_jobs.packed.composition import Composition
from peft_jobs.packed.slot import Slot
from peft_jobs.packed.stepping import Work, packed_step
from peft_jobs.result import TrialResult
from peft_jobs.tasks import TASKS

Results = dict[Slot, TrialResult | None]
"""How slots ended; None for those that go on."""


class Rounds:
    """Makes rounds, and learns from their cost how many slots a step should have."""

    def __init__(self, composition: Composition, width: int) -> None:
        """`width` is the one to tell before the first round."""
        self.composition, self.width = composition, width
        """Slots of a step, as chosen last."""
        self.calibration = Calibration()
        self.steps = 0

    def limit(self, slots: Sequence[Slot]) -> int | None:
        """Running slots beyond which more would gain nothing; None if there is no such number."""
        return self.calibration.limit(_kind(slots))

    def make(self, ready: Sequence[Slot]) -> tuple[Results, bool]:
        """One round: what became of the slots, and False if memory ran out in it.

        Then the slots of that step and of later ones have not moved. Slots with micro-batches of
        a size go together: a step has as many rows of each as all of them can give.
        """
        kind = _kind(ready)
        self.width = self.calibration.width(kind, len(ready))
        seconds, num_tokens = 0.0, 0
        results: Results = {}
        ordered = sorted(ready, key=lambda slot: slot.feed.rows_per_micro_batch)
        for group in groups(ordered, self.width):
            begun = time.perf_counter()
            works = self._works(group)
            losses = self._losses(group[0], works)
            if losses is None:
                for slot in group:
                    slot.begin_step_again()
                return results, False
            spent = time.perf_counter() - begun
            self.steps += 1
            seconds += spent
            num_tokens += sum(work.chunk.num_tokens for work in works)
            for slot, work, loss in zip(group, works, losses, strict=True):
                slot.phases.add({"train": spent / len(group)})
                slot.found["provenance"]["slots"] = self.width
                results[slot] = slot.attempted(_stepped(slot, work, loss))
        self.calibration.saw(kind, self.width, seconds, num_tokens)
        return results, True

    def _works(self, group: Sequence[Slot]) -> list[Work]:
        rows = math.gcd(*(slot.feed.rows_left for slot in group))
        number = self.composition.slots.index
        return [Work(number(slot), slot.spec, slot.feed.take(rows)) for slot in group]

    def _losses(self, first: Slot, works: Sequence[Work]) -> list[float] | None:
        """One packed step; None if memory ran out."""
        base, spec = first.base, first.spec
        try:
            losses: list[float] = packed_step(
                self.composition.pack,
                base.model,
                TASKS[spec.task.type],
                works,
                pad_token_id=base.tokenizer.pad_token_id,
                device=base.device,
                bf16=spec.training.bf16,
            ).tolist()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return None
        return losses


def _stepped(slot: Slot, work: Work, loss: float) -> Callable[[], None]:
    return lambda: slot.stepped(loss, work.chunk.ends_step)


def _kind(slots: Sequence[Slot]) -> Hashable:
    """What decides what a step of these slots costs, beside their number."""
    return frozenset(slot.feed.rows_per_micro_batch for slot in slots)
