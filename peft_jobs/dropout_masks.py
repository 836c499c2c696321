"""Dropout masks from counters: every element has its own number, so none depends on another's.

The generator is Squares (Widynski, "Squares: A Fast Counter-Based RNG", arXiv 2004.06278, the one
of 64 bits) in integer tensor operations, which give the same bits on every device, and for any
number of streams at once. A word of 64 bits decides about four neighbouring columns.

Dimensions: K streams, T tokens, C words of a token and one more for each module.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

COLUMNS_PER_WORD = 4
TOKEN_STRIDE = 1 << 24
"""Counters from one token to the next: words of its columns, at most."""
_LEVELS = 1 << 16
"""Values of the part of a word that decides about one column."""


def stream_key(step_key: int, module_key: int) -> int:
    """The key of a module's stream in a step, as a signed number of 64 bits; it is odd."""
    return signed(step_key ^ module_key | 1)


def signed(bits: int) -> int:
    """64 bits as int64 has them."""
    return bits - (1 << 64) if bits >> 63 else bits


def threshold(p: float) -> int:
    """What `draw_kept` compares with, for elements that are dropped with probability `p`, to within
    2^-17. With 0 all are kept."""
    return min(round(p * _LEVELS), _LEVELS - 1) - _LEVELS // 2


def num_words(width: int) -> int:
    """Words of a token of so many columns, with the one more that `draw_kept` needs."""
    return -(-width // COLUMNS_PER_WORD) + 1


def layer_of(module: str) -> str:
    """The name up to its first number (`model.layers.3`), or all of it where it has none."""
    found = re.match(r"(?:[^.]+\.)*?\d+(?=\.|$)", module)
    return module if found is None else found[0]


class MaskColumns:
    """Where the masks of modules lie: layer by layer, those of a layer side by side."""

    def __init__(
        self,
        widths: Mapping[str, int],
        keys: Mapping[str, int],
        layers: Mapping[str, str],
        device: torch.device,
    ) -> None:
        """`widths` are the modules' inputs, `keys` their keys; the masks of those that `layers`
        gives the same layer are drawn together."""
        together: dict[str, list[str]] = {}
        for name in widths:
            together.setdefault(layers[name], []).append(name)
        self.words: dict[str, slice] = {}
        """Of each layer."""
        self.columns: dict[str, tuple[str, slice]] = {}
        """Of each module: its layer, and its columns there."""
        numbers, module_keys, stop = [], [], 0
        for layer, modules in together.items():
            begin = stop
            for name in modules:
                start, length = (stop - begin) * COLUMNS_PER_WORD, num_words(widths[name])
                self.columns[name] = layer, slice(start, start + widths[name])
                numbers.append(torch.arange(length))
                module_keys.append(torch.full((length,), signed(keys[name])))
                stop += length
            self.words[layer] = slice(begin, stop)
        self.words_C = torch.cat(numbers).to(device)
        """The number of each word in its module."""
        self.keys_C = torch.cat(module_keys).to(device)
        """Of each word's module."""


class LayerMasks:
    """Masks of one step, drawn for all modules of a layer when the first of them asks.

    They are there until another layer asks, and are drawn again when that one does.
    """

    def __init__(self, columns: MaskColumns, steps_K1: Tensor) -> None:
        """`steps_K1` are the keys of each stream's micro-step, int64."""
        self.columns = columns
        self._keys_KC = (steps_K1 ^ columns.keys_C).bitwise_or_(1)
        self._starts_KC = self._keys_KC * columns.words_C
        self._held: tuple[str, Tensor, Tensor] | None = None

    def kept(self, module: str, counters_KT: Tensor, thresholds: Tensor | int) -> Tensor:
        """What is kept of a module's inputs, bool [K, T, I]; arguments as in `draw_kept`, the
        same for all modules of a layer. Counters of other tokens are another object."""
        layer, cut = self.columns.columns[module]
        held = self._held
        if held is None or held[0] != layer or held[1] is not counters_KT:
            self._held = held = None  # before the next is drawn
            words = self.columns.words[layer]
            keys_KC, starts_KC = self._keys_KC[:, words], self._starts_KC[:, words]
            kept = draw_kept(keys_KC, starts_KC, counters_KT, thresholds)
            self._held = held = layer, counters_KT, kept
        return held[2][..., cut]


def draw_kept(
    keys_KC: Tensor, starts_KC: Tensor, counters_KT: Tensor, thresholds: Tensor | int
) -> Tensor:
    """Whether each element is kept: bool [K, T, 4 * (C - 1)].

    `keys_KC` (or [K, 1]) has the stream of each word, `starts_KC` that times the word's number in
    the token, counted from 0 and one further than is used, both int64; `counters_KT` are multiples
    of TOKEN_STRIDE; `thresholds` is of `threshold`: a number, or int16 [K, 1, 1]. Where several
    modules lie side by side, what follows the last word of each means nothing.
    """
    y_KTC = torch.addcmul(starts_KC.unsqueeze(1), counters_KT.unsqueeze(2), keys_KC.unsqueeze(1))
    # The paper's z is y + key: the y of the next counter.
    bits_KTC = _squares(y_KTC[..., :-1], y_KTC[..., 1:])
    return bits_KTC.view(torch.int16).ge(thresholds)


def _squares(y: Tensor, z: Tensor) -> Tensor:
    """64 random bits for each counter times key, `y`; `z` is that plus key."""
    x = _halves_swapped(torch.addcmul(y, y, y))
    x = _halves_swapped(torch.addcmul(z, x, x, out=x))
    x = _halves_swapped(torch.addcmul(y, x, x, out=x))
    bits = torch.addcmul(z, x, x, out=x)
    x = _halves_swapped(bits)
    x = torch.addcmul(y, x, x, out=x)
    low, high = bits.view(torch.int32)[..., 0::2], x.view(torch.int32)[..., 1::2]
    low.bitwise_xor_(high)
    return bits


def _halves_swapped(x: Tensor) -> Tensor:
    """Each number turned by 32 bits."""
    halves = x.view(torch.int32).view(*x.shape, 2)
    return halves.flip(-1).view(torch.int64).squeeze(-1)
