"""Dropout masks of all slots, drawn together for the modules of one layer.

The masks of a layer are there from the first of its modules to the first of another layer, and are
drawn again for the backward: none is kept, and the number of operations depends on no number of
slots. See `peft_jobs.dropout_masks` for how an element finds its bit, which is the same for the
trial alone.

Dimensions: K slots at work, b rows of each, S the padded length, T tokens of a slot (b * S), C
words of the columns of all modules, or of a layer's, I a module's inputs.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from peft_jobs.dropout_masks import TOKEN_STRIDE, LayerMasks, MaskColumns, signed, threshold
from peft_jobs.engines.packed.micro_batches import Chunk
from peft_jobs.randomness import dropout_step_key


class SlotMasks:
    """Masks of one step."""

    def __init__(
        self,
        columns: MaskColumns,
        seeds: Sequence[int],
        rates: Sequence[float],
        chunks: Sequence[Chunk],
        length: int,
        target_length: int | None = None,
    ) -> None:
        """`seeds` are the trials', `length` is S; each chunk has the same number of rows. A decoder
        behind an encoder sees rows of `target_length`, which is another one."""
        self._chunks, self._length, self._target_length = chunks, length, target_length
        self._device = device = columns.keys_C.device
        self.factors_K = torch.tensor(
            [1 / (1 - p) for p in rates], dtype=torch.float64, device=device
        )
        """What makes up for what each slot drops: exactly 1 where that is nothing."""
        self._thresholds_K11 = torch.tensor(
            [threshold(p) for p in rates], dtype=torch.int16, device=device
        ).view(-1, 1, 1)
        steps_K = [
            signed(dropout_step_key(seed, chunk.micro_step))
            for seed, chunk in zip(seeds, chunks, strict=True)
        ]
        steps_K1 = torch.tensor(steps_K, dtype=torch.int64, device=device).unsqueeze(1)
        self._masks = LayerMasks(columns, steps_K1)
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
                        (row * self._own_length(chunk, length) + place) * TOKEN_STRIDE
                        for row in range(chunk.start, chunk.stop)
                        for place in range(length)
                    ]
                    for chunk in self._chunks
                ],
                device=self._device,
            )
        return self._counters[num_tokens]

    def _own_length(self, chunk: Chunk, length: int) -> int:
        """Of the trial's own rows, where the pack's are of `length`."""
        if length == self._length:
            return chunk.micro_batch.longest
        return chunk.micro_batch.longest_target if length == self._target_length else length
