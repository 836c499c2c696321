"""Dropout masks from counters: every element has its own number, so none depends on another's.

The generator is Squares (Widynski, "Squares: A Fast Counter-Based RNG", arXiv 2004.06278, the one
of 64 bits) in integer tensor operations, which give the same bits on every device, and for any
number of streams at once. A word of 64 bits decides about four neighbouring columns.

Dimensions: K streams, T tokens, C words of a token and one more for each module.
"""

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
