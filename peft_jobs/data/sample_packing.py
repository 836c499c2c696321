"""Several samples in one row: a training batch without most of its padding.

Only the layout of a batch changes. Its samples, their order, the optimizer steps and the loss of
each token stay what they are, so budgets and rungs count samples as ever. The positions begin anew
with each sample; from that, and from the absence of an attention mask, transformers
(`masking_utils.find_packed_sequence_indices`) keeps the attention inside a sample. Not every
architecture and adapter goes along, so `check_apart` tries it out.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from peft_jobs.errors import SpecError
from peft_jobs.tasks import IGNORED, Batch, Example
from peft_jobs.tasks.task import pad

_LENGTH = 6
"""Tokens of the samples that are tried out."""
_SAME, _NEAR = 1e-3, 0.1
"""Differences of logits, in their standard deviations: between equal rows, and from another layout,
which rounds otherwise."""


def pack(
    examples: Sequence[Example],
    pad_token_id: int,
    *,
    collate: Callable[[Sequence[Example], int], Batch],
    max_length: int,
) -> Batch:
    """The batch of `collate`, with the samples in as few rows of at most `max_length` as first-fit
    finds; position_ids [B, S] in place of the attention mask."""
    rows = fill([len(example["input_ids"]) for example in examples], max_length)
    batch = collate([_joined([examples[number] for number in row]) for row in rows], pad_token_id)
    del batch["attention_mask"]
    places = [[p for n in row for p in range(len(examples[n]["input_ids"]))] for row in rows]
    return batch | {"position_ids": pad(places, 0)}


def fill(lengths: Sequence[int], most: int) -> list[list[int]]:
    """Numbers of the samples of each row, longest first; no row sums up to more than `most`, unless
    one sample alone does."""
    rows: list[list[int]] = []
    free: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda number: (-lengths[number], number)):
        length = lengths[number]
        row = next((row for row, room in enumerate(free) if room >= length), None)
        if row is None:
            rows.append([number])
            free.append(most - length)
        else:
            rows[row].append(number)
            free[row] -= length
    return rows


def _joined(examples: Sequence[Example]) -> Example:
    """Samples as one; the first token of each is context, as it is alone."""
    return {
        "input_ids": [token for example in examples for token in example["input_ids"]],
        "labels": [label for example in examples for label in [IGNORED, *example["labels"][1:]]],
        "num_bytes": sum(example["num_bytes"] for example in examples),
    }


def check_apart(model: nn.Module) -> None:
    """Raise SpecError if samples in one row of `model` (with or without an adapter) see each other.

    A sample is put behind two others, and must give the same logits, near those that it gives
    alone. No random numbers are drawn; the mode is left as it was.
    """
    source: Any = model
    tokens = torch.randint(
        source.get_input_embeddings().num_embeddings,
        (3, _LENGTH),
        generator=torch.Generator().manual_seed(0),
    )
    first, second, behind = tokens.to(source.device)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            rows = torch.stack([torch.cat([first, behind]), torch.cat([second, behind])])
            one, other = _logits(model, rows)[:, -_LENGTH:]
            alone = _logits(model, behind.unsqueeze(0))[0]
    finally:
        model.train(was_training)
    unit = alone.std()
    if (one - other).abs().max() > _SAME * unit or (one - alone).abs().max() > _NEAR * unit:
        raise SpecError(
            "data.packing: samples in one row would see each other on this base with this adapter "
            "and attention; leave it out, or give model.attn_implementation: sdpa"
        )


def _logits(model: nn.Module, rows: Tensor) -> Tensor:
    """Logits of rows of samples of equal lengths."""
    places = torch.arange(rows.shape[1], device=rows.device) % _LENGTH
    found: Any = model(input_ids=rows, position_ids=places.expand(len(rows), -1), use_cache=False)
    return torch.as_tensor(found.logits)[:, -rows.shape[1] :].float()
