"""One packed step: a batch with the rows of several slots, one backward, and the losses apart.

Dimensions: K slots at work, b rows of each, S the padded length, B = K * b.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from peft_jobs.device.precision import autocast
from peft_jobs.engines.packed.eligibility import lora_of
from peft_jobs.engines.packed.micro_batches import Chunk
from peft_jobs.engines.packed.pack import Pack
from peft_jobs.evaluation.scoring import to_device
from peft_jobs.randomness import draw_dropout
from peft_jobs.spec import TrainingSpec, TrialSpec
from peft_jobs.tasks import Task


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
    brings the same number of rows.
    """
    examples = [example for work in works for example in work.chunk.examples]
    batch = to_device(task.collate(examples, pad_token_id), device)
    length = batch["input_ids"].shape[1]
    masks = None
    if any(lora_of(work.spec).lora_dropout for work in works):
        masks = SlotMasks(works, length, device)
    with pack.stepping([work.slot for work in works], masks):
        with autocast(device, training):
            losses_B = task.losses(model, batch)
        losses_K = losses_B.view(len(works), -1).sum(dim=1)
        losses_K = losses_K * losses_K.new_tensor([work.chunk.weight for work in works])
        torch.autograd.backward(losses_K.sum())
    return losses_K.detach()


class SlotMasks:
    """Dropout factors of all slots, each drawn at its own micro-batch's shape and then cut."""

    def __init__(self, works: Sequence[Work], length: int, device: torch.device) -> None:
        self._works, self._length, self._device = works, length, device
        self._rates = [lora_of(work.spec).lora_dropout for work in works]
        self._rates_K111 = torch.tensor(self._rates, device=device).view(-1, 1, 1, 1)
        self._longest = [work.chunk.micro_batch.longest for work in works]

    def __call__(self, module: str, width: int, dtype: torch.dtype) -> Tensor:
        """[K, b * S, I]; 1 where a slot drops nothing, 0 on what only the pack pads."""
        rows = len(self._works[0].chunk.examples)
        drawn_KbSI = torch.empty((len(self._works), rows, self._length, width), device=self._device)
        slots = zip(drawn_KbSI, self._works, self._rates, self._longest, strict=True)
        for drawn_bSI, work, p, longest in slots:
            if p == 0:
                drawn_bSI.fill_(1.0)
                continue
            chunk = work.chunk
            own = (len(chunk.micro_batch.examples), longest, width)
            key = (work.spec.seed, chunk.micro_step, module)
            if drawn_bSI.shape == own:
                draw_dropout(drawn_bSI, *key)
                continue
            drawn = draw_dropout(torch.empty(own, device=self._device), *key)
            inside = min(longest, self._length)  # these rows may be its shorter ones
            drawn_bSI[:, :inside] = drawn[chunk.start : chunk.stop, :inside]
            drawn_bSI[:, inside:] = -1.0
        one = torch.ones((), dtype=dtype, device=self._device)
        kept_K111 = torch.stack([one / (1 - p) for p in self._rates]).view(-1, 1, 1, 1)
        return drawn_KbSI.ge_(self._rates_K111).to(dtype).mul_(kept_K111).flatten(1, 2)
