"""Dropout masks of all slots, drawn together for the modules of one layer.

The masks of a layer are there from the first of its modules to the first of another layer, and are
drawn again for the backward: none is kept, and the number of operations depends on no number of
slots. See `peft_jobs.dropout_masks` for how an element finds its bit, which is the same for the
trial alone.

Dimensions: K slots at work, b rows of each, S the padded length, T tokens of a slot (b * S), C
words of the columns of all modules, or of a layer's, I a module's inputs.
"""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from peft_jobs.dropout_masks import (
    COLUMNS_PER_WORD,
    TOKEN_STRIDE,
    draw_kept,
    num_words,
    signed,
    threshold,
)
from peft_jobs.engines.packed.micro_batches import Chunk
from peft_jobs.randomness import dropout_module_key, dropout_step_key


class MaskColumns:
    """Where the masks of a pack's modules lie: layer by layer, those of a layer side by side."""

    def __init__(self, widths: Mapping[str, int], device: torch.device) -> None:
        """`widths` are the inputs of the adapted modules."""
        layers: dict[str, list[str]] = {}
        for name in widths:
            layers.setdefault(layer_of(name), []).append(name)
        self.words: dict[str, slice] = {}
        """Of each layer."""
        self.columns: dict[str, tuple[str, slice]] = {}
        """Of each module: its layer, and its columns there."""
        numbers, module_keys, stop = [], [], 0
        for layer, modules in layers.items():
            begin = stop
            for name in modules:
                start, length = (stop - begin) * COLUMNS_PER_WORD, num_words(widths[name])
                self.columns[name] = layer, slice(start, start + widths[name])
                numbers.append(torch.arange(length))
                module_keys.append(torch.full((length,), signed(dropout_module_key(name))))
                stop += length
            self.words[layer] = slice(begin, stop)
        self.words_C = torch.cat(numbers).to(device)
        """The number of each word in its module."""
        self.keys_C = torch.cat(module_keys).to(device)
        """Of each word's module."""


def layer_of(module: str) -> str:
    """The name up to its first number (`model.layers.3`), or all of it where it has none."""
    found = re.match(r"(?:[^.]+\.)*?\d+(?=\.|$)", module)
    return module if found is None else found[0]


class SlotMasks:
    """Masks of one step."""

    def __init__(
        self,
        columns: MaskColumns,
        seeds: Sequence[int],
        rates: Sequence[float],
        chunks: Sequence[Chunk],
        length: int,
    ) -> None:
        """`seeds` are the trials', `length` is S; each chunk has the same number of rows."""
        self._columns, self._chunks, self._length = columns, chunks, length
        device = columns.keys_C.device
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
        self._keys_KC = (steps_K1 ^ columns.keys_C).bitwise_or_(1)
        self._starts_KC = self._keys_KC * columns.words_C
        self._counters: dict[int, Tensor] = {}
        self._held: tuple[str, Tensor] | None = None

    def __call__(self, module: str, num_tokens: int) -> Tensor:
        """What each slot keeps of the inputs of a module: bool [K, T, I]; all where it drops
        nothing. The same for the same module, so that nobody has to keep it. `num_tokens` is T, or
        b where the module sees one vector for each row."""
        layer, cut = self._columns.columns[module]
        if self._held is None or self._held[0] != layer or self._held[1].shape[1] != num_tokens:
            self._held = None  # before the next is drawn
            self._held = layer, self._draw(self._columns.words[layer], num_tokens)
        return self._held[1][..., cut]

    def _draw(self, words: slice, num_tokens: int) -> Tensor:
        keys_KC, starts_KC = self._keys_KC[:, words], self._starts_KC[:, words]
        return draw_kept(keys_KC, starts_KC, self._counters_of(num_tokens), self._thresholds_K11)

    def _counters_of(self, num_tokens: int) -> Tensor:
        """[K, T]: each token is counted as in the trial's own micro-batch, at its own length."""
        if num_tokens not in self._counters:
            length = num_tokens // (self._chunks[0].stop - self._chunks[0].start)
            self._counters[num_tokens] = torch.tensor(
                [
                    [
                        (row * (chunk.micro_batch.longest if length == self._length else 1) + place)
                        * TOKEN_STRIDE
                        for row in range(chunk.start, chunk.stop)
                        for place in range(length)
                    ]
                    for chunk in self._chunks
                ],
                device=self._keys_KC.device,
            )
        return self._counters[num_tokens]
