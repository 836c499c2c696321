"""Evaluations of several slots in one pass: each forward has the same validation rows for all.

What is found is left with the slots, which report it as if each had evaluated alone. How many slots
share a forward follows from what a row costs, as in training; one is a choice too. What memory is
too small for together is tried by fewer, and at last by each slot alone, down its ladder.
"""

import logging
import time
from collections.abc import Sequence

from peft_jobs.device.memory import is_out_of_memory, release
from peft_jobs.engines.packed.calibration import Calibration, groups
from peft_jobs.engines.packed.composition import UNLIMITED, Composition
from peft_jobs.engines.packed.packed_trial import Slot
from peft_jobs.evaluation.scoring import batches, measuring, named, to_device
from peft_jobs.tasks import TASKS, Example, Score

log = logging.getLogger(__name__)


class Evaluations:
    """Evaluates slots of the pack that is on the base."""

    def __init__(self, composition: Composition) -> None:
        self.composition = composition
        self._calibration = Calibration()
        self._most: dict[str, int] = {}
        """Slots that memory is enough for, by base."""

    def make(self, slots: Sequence[Slot], split: str) -> None:
        """Leave the task's metrics on a split with the slots, but for those that are alone."""
        alike: dict[int, list[Slot]] = {}
        for slot in slots:
            alike.setdefault(slot.scoring.batch_size, []).append(slot)
        for group in alike.values():
            self._by_most(group, split)

    def _by_most(self, slots: Sequence[Slot], split: str) -> None:
        """In as large parts as memory is known to be enough for."""
        base = slots[0].base
        for part in groups(slots, self._most.get(base.key, UNLIMITED)):
            if len(part) == 1 or self._tried(part, split):
                continue
            self._most[base.key] = -(-len(part) // 2)
            release(base.device)
            self._by_most(part, split)

    def _tried(self, slots: Sequence[Slot], split: str) -> bool:
        """False if memory ran out."""
        begun = time.perf_counter()
        try:
            with self.composition.unplanned():
                scores = self._scores(slots, split)
        except Exception as error:
            if is_out_of_memory(error):
                log.warning("out of memory in an evaluation of %d trials", len(slots))
                return False
            log.warning(
                "%d trials evaluate alone, as together they fail", len(slots), exc_info=error
            )
            return True
        spent = time.perf_counter() - begun
        task = TASKS[slots[0].spec.task.type]
        for slot, found in zip(slots, scores, strict=True):
            slot.scoring.known[split] = named(split, task.metrics(found))
            slot.phases.add({"evaluate": spent / len(slots)})
        return True

    def _scores(self, slots: Sequence[Slot], split: str) -> list[list[Score]]:
        first = slots[0]
        base, rows, batch_size = first.base, first.scoring.rows(split), first.scoring.batch_size
        scores: list[list[Score]] = [[] for _ in slots]
        numbers = range(len(slots))
        with measuring(base.model, base.device, first.spec.training):
            for examples in batches(rows, batch_size):
                width = self._calibration.width(batch_size, len(slots))
                begun = time.perf_counter()
                for group in groups(numbers, width):
                    found = self._forward([slots[number] for number in group], examples)
                    for place, number in enumerate(group):
                        start = place * len(examples)
                        scores[number] += found[start : start + len(examples)]
                num_tokens = len(slots) * sum(len(example["input_ids"]) for example in examples)
                spent = time.perf_counter() - begun
                self._calibration.saw(batch_size, width, spent, num_tokens)
        return scores

    def _forward(self, slots: Sequence[Slot], examples: Sequence[Example]) -> list[Score]:
        """Scores of the examples by each of the slots, one after the other."""
        base, task = slots[0].base, TASKS[slots[0].spec.task.type]
        numbers = [self.composition.slots.index(slot) for slot in slots]
        batch = task.collate([*examples] * len(slots), base.tokenizer.pad_token_id)
        with self.composition.pack.stepping(numbers, None):
            return task.scores(base.model, to_device(batch, base.device))
