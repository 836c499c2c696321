"""Dropout masks of all slots, drawn together.

`SlotMasks` are the adapters', for the modules of one layer at a time, `BaseMasks` those of a base
that drops itself. The masks of a layer are there from the first of its modules to the first of
another layer, and are drawn again for the backward: none is kept, and the number of operations
depends on no number of slots. See `peft_jobs.dropout_masks` for how an element finds its bit, which
is the same for the trial alone.

Dimensions: K slots at work, b rows of each, S the padded length, T tokens of a slot (b * S), C
words of the columns of all modules, or of a layer's, I a module's inputs.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from peft_jobs.dropout_masks import (
    TOKEN_STRIDE,
    LayerMasks,
    MaskColumns,
    signed,
    threshold,
)
from peft_jobs.engines.packed.micro_batches import Chunk
from peft_jobs.randomness import dropout_step_key
from peft_jobs.site_masks import SiteMasks


class SlotMasks:
    """Masks of one step."""

    def __init__(
        self,
        columns: MaskColumns,
        seeds: Sequence[int],
        rates: Sequence[float],
        chunks: Sequence[Chunk],
        lengths: Sequence[int],
    ) -> None:
        """`seeds` are the trials'; each chunk has the same number of rows. `lengths` are S, and
        that of the rows that a decoder behind an encoder sees, which is another one."""
        self._chunks, self._lengths = chunks, lengths
        self._device = device = columns.keys_C.device
        self.factors_K = torch.tensor(
            [1 / (1 - p) for p in rates], dtype=torch.float64, device=device
        )
        """What makes up for what each slot drops: exactly 1 where that is nothing."""
        self._thresholds_K11 = torch.tensor(
            [threshold(p) for p in rates], dtype=torch.int16, device=device
        ).view(-1, 1, 1)
        self._masks = LayerMasks(columns, _step_keys(seeds, chunks, device))
        self._counters: dict[int, Tensor] = {}

    def __call__(self, module: str, num_tokens: int) -> Tensor:
        """What each slot keeps of the inputs of a module: bool [K, T, I]; all where it drops
        nothing. The same for the same module, so that nobody has to keep it. `num_tokens` is T, or
        b where the module sees one vector for each row, or those of targets."""
        return self._masks.kept(module, self._counters_of(num_tokens), self._thresholds_K11)

    def _counters_of(self, num_tokens: int) -> Tensor:
        """[K, T]: each token is counted as in the trial's own micro-batch, at its own length."""
        if num_tokens not in self._counters:
            length = num_tokens // (self._chunks[0].stop - self._chunks[0].start)
            self._counters[num_tokens] = torch.tensor(
                [
                    [
                        (row * _own_length(chunk, length, self._lengths) + place) * TOKEN_STRIDE
                        for row in range(chunk.start, chunk.stop)
                        for place in range(length)
                    ]
                    for chunk in self._chunks
                ],
                device=self._device,
            )
        return self._counters[num_tokens]


class NoRow(ValueError):
    """What is dropped of has no dimension of rows."""


class BaseMasks:
    """What each slot drops in one step where the base itself drops, as the trial alone would."""

    def __init__(
        self,
        sites: SiteMasks,
        seeds: Sequence[int],
        chunks: Sequence[Chunk],
        lengths: Sequence[int],
        device: torch.device,
    ) -> None:
        """`sites` are of the model, for all steps; the others as those of `SlotMasks`."""
        self._sites, self._num_slots = sites, len(chunks)
        sites.begin(_step_keys(seeds, chunks, device))
        self._counters: dict[tuple[int, int], Tensor] = {}
        self._num_rows = chunks[0].stop - chunks[0].start
        self._starts_K111 = _column([chunk.start for chunk in chunks], device)
        self._own_K111 = {
            length: _column([_own_length(chunk, length, lengths) for chunk in chunks], device)
            for length in lengths
        }

    def dropped(self, x: Tensor, p: float, where: str) -> Tensor:
        """As `peft_jobs.randomness.dropped` of each slot's own rows; `x` begins with the rows of
        all slots, and if it has three dimensions or more, the last but one is along a row."""
        num_slots, width = self._num_slots, x.shape[-1]
        tokens = x.shape[:-1].numel() // num_slots
        length = tokens // self._num_rows if x.ndim == 2 else x.shape[-2]
        groups = tokens // (self._num_rows * length)
        if len(x) % num_slots or num_slots * self._num_rows * groups * length * width != x.numel():
            raise NoRow(f"{where} drops of what belongs to no row: {list(x.shape)}")
        return self._sites.dropped(x, p, where, lambda: self._counters_of(groups, length, x.device))

    def _counters_of(self, groups: int, length: int, device: torch.device) -> Tensor:
        """[K, T] of rows with so many vectors of `length` each, made once in a step."""
        if (groups, length) not in self._counters:
            rows_b11, groups_m1, places_L = (
                torch.arange(size, device=device).view(-1, *[1] * dimensions)
                for size, dimensions in ((self._num_rows, 2), (groups, 1), (length, 0))
            )
            own_K111: Tensor | int = self._own_K111.get(length, length)
            counters_KbmL = (self._starts_K111 + rows_b11) * groups + groups_m1
            counters_KbmL = (counters_KbmL * own_K111 + places_L) * TOKEN_STRIDE
            self._counters[groups, length] = counters_KbmL.view(self._num_slots, -1)
        return self._counters[groups, length]


def _step_keys(seeds: Sequence[int], chunks: Sequence[Chunk], device: torch.device) -> Tensor:
    """Of each slot's micro-step, [K, 1]."""
    keys_K = [
        signed(dropout_step_key(seed, chunk.micro_step))
        for seed, chunk in zip(seeds, chunks, strict=True)
    ]
    return torch.tensor(keys_K, dtype=torch.int64, device=device).unsqueeze(1)


def _own_length(chunk: Chunk, length: int, lengths: Sequence[int]) -> int:
    """Of the trial's own rows, where the pack's are of `length`."""
    if length == lengths[0]:
        return chunk.micro_batch.longest
    return chunk.micro_batch.longest_target if length in lengths else length


def _column(numbers: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor(numbers, device=device).view(-1, 1, 1, 1)
