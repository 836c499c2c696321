"""Evaluations of several trials in one pass: each forward has the same validation rows for all.

What is found is left with the trials, which report it as if each had evaluated alone. How many
share a forward follows from what a row costs, as in training; one is a choice too. What memory is
too small for together is tried by fewer, and at last by each trial alone, down its ladder.
"""

import logging
import time
from collections.abc import Sequence

from peft_jobs.device.memory import RanOut, release, tried
from peft_jobs.engines.packed.calibration import Calibration, groups
from peft_jobs.engines.packed.composition import UNLIMITED, Composition
from peft_jobs.engines.packed.packed_trial import PackedTrial, slot_of
from peft_jobs.evaluation.scoring import batches, measuring, to_device
from peft_jobs.tasks import TASKS, Example, Score

log = logging.getLogger(__name__)


class Evaluations:
    """Evaluates trials of the pack that is on the base."""

    def __init__(self, composition: Composition) -> None:
        self.composition = composition
        self._calibration = Calibration()
        self._most: dict[str, int] = {}
        """Trials that memory is enough for, by base."""

    def make(self, trials: Sequence[PackedTrial], split: str) -> None:
        """Leave the scores on a split with the trials, but for those that are alone."""
        alike: dict[int, list[PackedTrial]] = {}
        for trial in sorted(trials, key=slot_of):
            alike.setdefault(trial.scoring.batch_size, []).append(trial)
        for group in alike.values():
            self._by_most(group, split)

    def _by_most(self, trials: Sequence[PackedTrial], split: str) -> None:
        """In as large parts as memory is known to be enough for."""
        base = trials[0].base
        for part in groups(trials, self._most.get(base.key, UNLIMITED)):
            if len(part) == 1 or self._tried(part, split):
                continue
            self._most[base.key] = -(-len(part) // 2)
            release(base.device)
            self._by_most(part, split)

    def _tried(self, trials: Sequence[PackedTrial], split: str) -> bool:
        """False if memory ran out."""
        begun = time.perf_counter()
        try:
            scores = tried(lambda: self._scores(trials, split))
        except Exception as error:
            log.warning(
                "%d trials evaluate alone, as together they fail", len(trials), exc_info=error
            )
            return True
        if isinstance(scores, RanOut):
            log.warning("out of memory in an evaluation of %d trials", len(trials))
            return False
        spent = time.perf_counter() - begun
        for trial, found in zip(trials, scores, strict=True):
            trial.scoring.known[split] = found
            trial.phases.add({"evaluate": spent / len(trials)})
        return True

    def _scores(self, trials: Sequence[PackedTrial], split: str) -> list[list[Score]]:
        first = trials[0]
        base, rows, batch_size = first.base, first.scoring.rows(split), first.scoring.batch_size
        scores: list[list[Score]] = [[] for _ in trials]
        numbers = range(len(trials))
        training = first.spec.training
        with self.composition.unplanned(), measuring(base.model, base.device, training):
            for examples in batches(rows, batch_size):
                width = self._calibration.width(batch_size, len(trials))
                begun = time.perf_counter()
                for group in groups(numbers, width):
                    found = self._forward([trials[number] for number in group], examples)
                    for place, number in enumerate(group):
                        start = place * len(examples)
                        scores[number] += found[start : start + len(examples)]
                num_tokens = len(trials) * sum(len(example["input_ids"]) for example in examples)
                spent = time.perf_counter() - begun
                self._calibration.saw(batch_size, width, spent, num_tokens)
        return scores

    def _forward(self, trials: Sequence[PackedTrial], examples: Sequence[Example]) -> list[Score]:
        """Scores of the examples by each of the trials, one after the other."""
        base, task = trials[0].base, TASKS[trials[0].spec.task.type]
        batch = task.collate([*examples] * len(trials), base.tokenizer.pad_token_id)
        with self.composition.pack.stepping([slot_of(trial) for trial in trials], None):
            return task.scores(base.model, to_device(batch, base.device))
