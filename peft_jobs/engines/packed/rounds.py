"""Rounds: every slot that may go on takes one chunk, in steps of as many slots as are best."""

import logging
import math
import time
from collections.abc import Hashable, Sequence
from enum import Enum, auto
from functools import partial

from peft_jobs.device.lost_device import raise_if_lost
from peft_jobs.device.memory import is_out_of_memory, release
from peft_jobs.engines.packed.calibration import Calibration, groups
from peft_jobs.engines.packed.composition import UNLIMITED, Composition
from peft_jobs.engines.packed.evaluations import Evaluations
from peft_jobs.engines.packed.packed_trial import Slot
from peft_jobs.engines.packed.step import Work, packed_step
from peft_jobs.host.result import TrialResult
from peft_jobs.tasks import TASKS

log = logging.getLogger(__name__)

Results = dict[Slot, TrialResult | None]
"""How slots ended; None for those that go on."""


class Failure(Enum):
    """Why a step was not made."""

    MEMORY = auto()
    ERROR = auto()


class Rounds:
    """Makes rounds, and learns from their cost how many slots a step should have."""

    def __init__(self, composition: Composition, width: int) -> None:
        """`width` is the one to tell before the first round."""
        self.composition, self.width = composition, width
        """Slots of a step, as chosen last."""
        self.calibration = Calibration()
        self.evaluations = Evaluations(composition)
        self.most: dict[Hashable, int] = {}
        """Slots of a step that memory is enough for, by kind of work, where it is not for all."""
        self.steps = 0

    def limit(self, slots: Sequence[Slot]) -> int | None:
        """Running slots beyond which more would gain nothing; None if there is no such number."""
        kind = _kind(slots)
        limits = [self.calibration.limit(kind), self.most.get(kind)]
        return min((limit for limit in limits if limit is not None), default=None)

    def make(self, ready: Sequence[Slot]) -> tuple[Results, bool]:
        """One round: what became of the slots, and False if memory is too small for so many.

        Where it runs out, the slots of that step and of later ones have not moved; if the step was
        of some of the slots, later ones are of fewer. Slots with micro-batches of a size go
        together: a step has as many rows of each as all of them can give. Slots that reach a rung
        are evaluated together, after the last step; nobody else waits for them.
        """
        results: Results = {}
        fits = self._steps(ready, results)
        due = [slot for slot, ended in results.items() if ended is None and slot.is_due]
        self.evaluations.make(due, "validation")
        for slot in due:
            results[slot] = slot.attempted(slot.end_step)
        return results, fits

    def _steps(self, ready: Sequence[Slot], results: Results) -> bool:
        kind = _kind(ready)
        most = min(len(ready), self.most.get(kind, UNLIMITED))
        self.width = self.calibration.width(kind, most)
        seconds, num_tokens, failed = 0.0, 0, False
        for group in self._groups(ready):
            begun = time.perf_counter()
            works = self._works(group)
            losses = self._tried(group, works)
            if isinstance(losses, Failure):
                failed = True
                for slot in group:
                    slot.begin_step_again()
                if losses is Failure.MEMORY:
                    return self._narrowed(kind, group)
                if not self._one_by_one(group, results):
                    return False
                continue
            spent = time.perf_counter() - begun
            seconds += spent
            num_tokens += sum(work.chunk.num_tokens for work in works)
            for slot, work, loss in zip(group, works, losses, strict=True):
                slot.phases.add({"train": spent / len(group)})
                slot.found["provenance"]["slots"] = self.width
                results[slot] = slot.attempted(partial(_stepped, slot, work, loss))
        if not failed:
            self.calibration.saw(kind, self.width, seconds, num_tokens)
        return True

    def _narrowed(self, kind: Hashable, group: Sequence[Slot]) -> bool:
        """Make smaller steps of slots that memory was too small for; False if these were all."""
        if not 1 < len(group) < len(self.composition.slots):
            return False
        self.most[kind] = -(-len(group) // 2)
        log.warning("out of memory in a step of %d trials: fewer share one", len(group))
        release(group[0].base.device)
        return True

    def _groups(self, ready: Sequence[Slot]) -> list[list[Slot]]:
        """The slots of each step; those whose next rows are of like lengths go together."""
        if self.width >= len(ready):
            return [list(ready)]
        ordered = sorted(ready, key=lambda s: (s.feed.rows_per_micro_batch, s.feed.longest))
        # Neighbours in the pack are a slice of its rows, which costs no copy.
        return [sorted(g, key=self.composition.slots.index) for g in groups(ordered, self.width)]

    def _works(self, group: Sequence[Slot]) -> list[Work]:
        rows = math.gcd(*(slot.feed.rows_left for slot in group))
        number = self.composition.slots.index
        return [Work(number(slot), slot.spec, slot.feed.take(rows)) for slot in group]

    def _losses(self, first: Slot, works: Sequence[Work]) -> list[float]:
        """One packed step."""
        base, spec = first.base, first.spec
        losses: list[float] = packed_step(
            self.composition.pack,
            base.model,
            TASKS[spec.task.type],
            works,
            pad_token_id=base.tokenizer.pad_token_id,
            device=base.device,
            training=spec.training,
        ).tolist()
        self.steps += 1
        return losses

    def _tried(self, group: Sequence[Slot], works: Sequence[Work]) -> list[float] | Failure:
        try:
            return self._losses(group[0], works)
        except Exception as error:
            if is_out_of_memory(error):
                return Failure.MEMORY
            raise_if_lost(error)
            log.warning("a step of %d trials failed; each tries alone", len(group), exc_info=error)
            return Failure.ERROR

    def _one_by_one(self, group: Sequence[Slot], results: Results) -> bool:
        """A whole optimizer step of each slot by itself, so that an error ends the slot whose own
        it is; False if memory ran out."""
        for slot in group:
            try:
                self._step_alone(slot)
            except Exception as error:
                if not is_out_of_memory(error):
                    results[slot] = slot.failure(error)
                    continue
            else:
                results[slot] = None
                continue
            slot.begin_step_again()
            return False
        return True

    def _step_alone(self, slot: Slot) -> None:
        ended = False
        while not ended:
            [work] = self._works([slot])
            [loss] = self._losses(slot, [work])
            _stepped(slot, work, loss)
            ended = work.chunk.ends_step


def _stepped(slot: Slot, work: Work, loss: float) -> None:
    slot.stepped(loss, work.chunk.ends_step)
    if not slot.is_due:
        slot.end_step()


def _kind(slots: Sequence[Slot]) -> Hashable:
    """What decides what a step of these slots costs, beside their number."""
    return frozenset(slot.feed.rows_per_micro_batch for slot in slots)
