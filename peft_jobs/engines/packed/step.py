"""One packed step: a batch with the rows of several slots, one backward, and the losses apart.

Dimensions: K slots at work, b rows of each, S the padded length, B = K * b.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import masking_utils

from peft_jobs.device.precision import autocast
from peft_jobs.engines.packed.forms import FORMS
from peft_jobs.engines.packed.micro_batches import Chunk
from peft_jobs.engines.packed.pack import Pack
from peft_jobs.engines.packed.slot_masks import BaseMasks, SlotMasks
from peft_jobs.evaluation.scoring import to_device
from peft_jobs.spec import TrainingSpec, TrialSpec
from peft_jobs.tasks import IGNORED, Batch, Task


@dataclass(frozen=True)
class Work:
    """What one slot brings to a step."""

    slot: int
    spec: TrialSpec
    chunk: Chunk


def packed_step(
    pack: Pack,
    model: nn.Module,
    task: Task[Any],
    works: Sequence[Work],
    *,
    pad_token_id: int,
    device: torch.device,
    training: TrainingSpec,
) -> Tensor:
    """Add the gradients of all `works` to their slots' rows; [K] losses, without gradient.

    A loss is the chunk's part of the mean over the supervised tokens of the slot's effective batch.
    The sum over slots is what is differentiated, so no slot's loss touches another's gradient. Each
    brings the same number of rows. Where one asks for gradient checkpointing, all have it.
    """
    examples = [example for work in works for example in work.chunk.examples]
    collated = task.collate(examples, pad_token_id)
    adapters, masks = [work.spec.adapter for work in works], None
    rates = [FORMS[adapter.method].dropout(adapter) for adapter in adapters]
    if any(rates) or pack.keyed is not None:
        lengths = [collated["input_ids"].shape[1]]
        if works[0].spec.task.type == "seq2seq":
            collated = _told_apart(collated)
            lengths.append(collated["labels"].shape[1])
        seeds, chunks = [work.spec.seed for work in works], [work.chunk for work in works]
        if any(rates):
            masks = SlotMasks(pack.mask_columns, seeds, rates, chunks, lengths)
        if pack.keyed is not None:
            sites = pack.keyed.masks
            pack.keyed.draw = BaseMasks(sites, seeds, chunks, lengths, device).dropped
    batch = to_device(collated, device)
    # Before the forward: a copy after it would wait until it is done.
    weights_K = torch.tensor([work.chunk.weight for work in works], dtype=torch.float64).to(device)
    pack.recompute(any(work.spec.training.gradient_checkpointing for work in works))
    with pack.stepping([work.slot for work in works], masks):
        known = _padded() if (collated["attention_mask"] == 0).any() else nullcontext()
        with known, pack.keyed or nullcontext(), autocast(device, training):
            losses_B = task.losses(model, batch)
        losses_K = losses_B.view(len(works), -1).sum(dim=1)
        losses_K = losses_K * weights_K.to(losses_K.dtype)
        torch.autograd.backward(losses_K.sum())
    return losses_K.detach()


@contextmanager
def _padded() -> Iterator[None]:
    """Where there is padding, transformers 5.23 is told so without reading a mask of the device.

    It asks twice whether there is none, to do without a mask, and each time the host waits.
    """
    masks: Any = masking_utils
    ask = masks.fast_all
    masks.fast_all = lambda _mask: False
    try:
        yield
    finally:
        masks.fast_all = ask


def _told_apart(batch: Batch) -> Batch:
    """Targets of another length than the sources', by a token that does not count: a layer's inputs
    tell by their length whose tokens they are."""
    labels_BT = batch["labels"]
    if labels_BT.shape[1] != batch["input_ids"].shape[1]:
        return batch
    return {**batch, "labels": pad(labels_BT, (0, 1), value=IGNORED)}
