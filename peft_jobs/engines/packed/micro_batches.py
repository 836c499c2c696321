"""The data of one slot: micro-batches in the trial's own order, handed out in chunks of rows.

What a trial sees alone it sees here: the same examples in the same micro-batches. Only the cut into
chunks, and the length to which they are padded, are the pack's.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from peft_jobs.evaluation.scoring import examples_of
from peft_jobs.spec import TrainingSpec
from peft_jobs.tasks import Example, Task


@dataclass(frozen=True)
class MicroBatch:
    """What one forward of the trial alone would see."""

    examples: list[Example]

    @property
    def longest(self) -> int:
        """Tokens to which it is padded alone."""
        return max(len(example["input_ids"]) for example in self.examples)

    @property
    def longest_target(self) -> int:
        """The same of what a decoder predicts, behind an encoder."""
        return max(len(example["labels"]) for example in self.examples)


@dataclass(frozen=True)
class Chunk:
    """Some rows of a micro-batch."""

    micro_batch: MicroBatch
    micro_step: int
    """Counted from 1 over the trial, as the keys of dropout masks are."""
    start: int
    stop: int
    weight: float
    """1 / supervised tokens of the optimizer step."""
    ends_step: bool
    """Whether the optimizer steps after this chunk."""

    @property
    def examples(self) -> list[Example]:
        return self.micro_batch.examples[self.start : self.stop]

    @property
    def num_tokens(self) -> int:
        """Padding apart."""
        return sum(len(example["input_ids"]) for example in self.examples)


class Feed:
    """Chunks of one trial, from its sample `first` on."""

    def __init__(
        self,
        task: Task[Any],
        dataset: Dataset,
        order: Iterator[int],
        training: TrainingSpec,
        pad_token_id: int,
        first_step: int,
    ) -> None:
        """`order` gives row numbers, beginning after `first_step` optimizer steps."""
        self._task, self._dataset, self._order = task, dataset, order
        self.rows_per_micro_batch = training.per_device_train_batch_size
        self._accumulation = training.gradient_accumulation_steps
        self._pad_token_id = pad_token_id
        self._micro_step = first_step * self._accumulation
        self._step: list[MicroBatch] = []
        self._first_micro_step = self._micro_step
        self._waiting: list[MicroBatch] = []
        self._start = 0
        self.tokens = 0
        """Supervised tokens of the present optimizer step."""

    @property
    def rows_left(self) -> int:
        """Of the present micro-batch, or of the next one where that is through."""
        return self.rows_per_micro_batch - self._start

    @property
    def longest(self) -> int:
        """Tokens to which the present micro-batch, or the next one, is padded alone."""
        if not self._waiting:
            self._begin_step()
        return self._waiting[0].longest

    def take(self, rows: int) -> Chunk:
        """The next `rows` rows; no more than `rows_left`."""
        if not self._waiting:
            self._begin_step()
        if self._start == 0:
            self._micro_step += 1
        micro_batch, start = self._waiting[0], self._start
        self._start += rows
        if self._start >= len(micro_batch.examples):
            self._waiting.pop(0)
            self._start = 0
        return Chunk(
            micro_batch,
            self._micro_step,
            start,
            start + rows,
            1.0 / self.tokens,
            ends_step=not self._waiting,
        )

    def begin_again(self) -> None:
        """Go back to the beginning of the optimizer step of the last chunk."""
        self._micro_step = self._first_micro_step
        self._waiting, self._start = list(self._step), 0

    def _begin_step(self) -> None:
        self.tokens = 0
        self._step, self._first_micro_step = [], self._micro_step
        for _ in range(self._accumulation):
            numbers = [next(self._order) for _ in range(self.rows_per_micro_batch)]
            examples = examples_of(self._dataset[numbers])
            self.tokens += self._task.count(self._task.collate(examples, self._pad_token_id))
            self._step.append(MicroBatch(examples))
        self._waiting = list(self._step)
