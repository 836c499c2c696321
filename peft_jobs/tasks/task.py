"""What a task is: from a row to an example, a batch, a loss and the metrics of an evaluation.

Dimensions: B rows, S tokens (the batch's longest row), V vocabulary, C classes, N supervised.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from datasets import Features
from peft import TaskType
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""Label of a token that is not supervised (transformers' own value)."""

Row = Mapping[str, Any]
Example = dict[str, Any]
Batch = dict[str, Tensor]
Encoder = Callable[[Row], Example | Sequence[Example] | None]
"""A row as an example, or several; none if no supervised token is left after the cut at
max_length."""


@dataclass(frozen=True)
class Score:
    """What one evaluated row adds to the metrics."""

    loss_sum: float
    """Natural log-likelihood lost, summed in float64 over `count` tokens or rows."""
    count: int
    num_bytes: int = 0
    """UTF-8 bytes of the text behind the supervised tokens."""
    predicted: tuple[int, ...] = ()
    actual: tuple[int, ...] = ()


SpecT = TypeVar("SpecT", contravariant=True)


class Task(Protocol[SpecT]):
    """One entry of TASKS; what is known of it without torch is in its section of the spec."""

    peft_task_type: TaskType

    def columns(self, spec: SpecT) -> dict[str, tuple[str, ...]]:
        """The columns that each field of the spec uses."""

    def label_field(self, spec: SpecT) -> str | None:
        """The field, among those of `columns`, whose column has the classes, in each row one or a
        list of them; None for a task without classes, or with a column for each."""

    def named_classes(self, spec: SpecT) -> tuple[str, ...]:
        """The classes that the spec itself names, in their order, which is that of numbers in the
        rows; none if the rows show them."""

    def mistake(self, row: Row, spec: SpecT) -> str | None:
        """Why a raw row cannot be used, or None."""

    def features(self, tokenizer: PreTrainedTokenizerBase, spec: SpecT) -> Features:
        """Columns and types of the examples."""

    def encoder(
        self,
        tokenizer: PreTrainedTokenizerBase,
        spec: SpecT,
        max_length: int,
        classes: Sequence[int | str],
    ) -> Encoder:
        """The function from rows to examples; raises SpecError if the tokenizer lacks something.

        The rows have `classes` in the column of `label_field` (see `peft_jobs.data.labels`). The
        encoder raises DataError for a row that it cannot encode.
        """

    def collate(self, examples: Sequence[Example], pad_token_id: int) -> Batch:
        """Examples padded on the right to the longest, on the CPU."""

    def count(self, batch: Batch) -> int:
        """Supervised tokens of a batch (classification: rows); no wait for the device."""

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Summed cross entropy of each row's supervised tokens, [B], with a gradient.

        float32, or float64 of a model in float64.
        """

    def scores(self, model: nn.Module, batch: Batch) -> list[Score]:
        """What an evaluation needs of each row of a batch, in their order; keeps no tensor."""

    def metrics(self, scores: Sequence[Score]) -> dict[str, float]:
        """Metrics by name (`loss`, ...), the same however the rows were batched."""


def base_of(model: nn.Module) -> Any:
    """The base under an adapter of PEFT's or of ours; a model without one is its own."""
    adapted: Any = model
    return adapted.get_base_model() if hasattr(adapted, "get_base_model") else adapted


def pad(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """Rows of token ids as an int64 tensor [B, S], filled up with `value` on the right."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows])


def mask(rows: Sequence[Sequence[int]]) -> Tensor:
    """Attention mask [B, S] of rows that `pad` padded: 1 on tokens, 0 on padding."""
    return pad([[1] * len(row) for row in rows], 0)


def upcast(logits: Tensor) -> Tensor:
    """In float32, where log-probabilities are to be had; float64 stays what it is."""
    return logits if logits.dtype == torch.float64 else logits.float()
