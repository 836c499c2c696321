"""The bits of dropout masks against the paper's own lines in Python's integers, and as a sample."""

import pytest
import torch

from peft_jobs.dropout_masks import (
    TOKEN_STRIDE,
    draw_kept,
    num_words,
    signed,
    stream_key,
    threshold,
)
from peft_jobs.randomness import dropout_module_key, dropout_step_key, dropped

M64 = (1 << 64) - 1


def squares64(counter: int, key: int) -> int:
    """Widynski's function as it is printed in arXiv 2004.06278."""

    def turned(x: int) -> int:
        return (x >> 32 | x << 32) & M64

    x = y = counter * key & M64
    z = y + key & M64
    x = turned(x * x + y & M64)
    x = turned(x * x + z & M64)
    x = turned(x * x + y & M64)
    t = x = x * x + z & M64
    x = turned(x)
    return t ^ (x * x + y & M64) >> 32


def kept_by_integers(key: int, tokens: range, width: int, p: float) -> list[list[bool]]:
    def is_kept(token: int, column: int) -> bool:
        bits = squares64(token * TOKEN_STRIDE + column // 4, key) >> 16 * (column % 4) & 0xFFFF
        value = bits - 0x10000 if bits & 0x8000 else bits
        return value >= min(round(p * 65536), 65535) - 32768

    return [[is_kept(token, column) for column in range(width)] for token in tokens]


def draw(keys: list[int], tokens: range, width: int, threshold: int) -> torch.Tensor:
    keys_K1 = torch.tensor([[signed(key & M64)] for key in keys])
    counters_KT = (torch.tensor(tokens) * TOKEN_STRIDE).expand(len(keys), -1)
    starts = keys_K1 * torch.arange(num_words(width))
    return draw_kept(keys_K1, starts, counters_KT, threshold)[..., :width]


@pytest.mark.parametrize("p", [0.0, 0.05, 0.5, 0.999999])
def test_bits_are_those_of_the_paper(p: float) -> None:
    keys = [0x548C9DECBCE65297, 0xC58D7ABF16DC3B21, 1, M64]
    found = draw(keys, range(3, 9), 7, threshold(p))
    for key, kept in zip(keys, found.tolist(), strict=True):
        assert kept == kept_by_integers(key, range(3, 9), 7, p)


def test_a_mask_of_a_module_is_made_of_its_keys() -> None:
    key = dropout_step_key(5, 3) ^ dropout_module_key("layers.0.q") | 1
    assert stream_key(dropout_step_key(5, 3), dropout_module_key("layers.0.q")) == signed(key)
    expected = torch.tensor(kept_by_integers(key, range(6), 5, 0.3)).view(2, 3, 5)
    x = torch.randn(2, 3, 5)
    found = dropped(x, 0.3, 5, 3, "layers.0.q")
    assert torch.equal(found, torch.where(expected, x / 0.7, 0.0))
    # Whatever the dimensions before the last one, elements are counted in their order.
    assert torch.equal(dropped(x.view(6, 5), 0.3, 5, 3, "layers.0.q"), found.view(6, 5))


def test_nothing_and_almost_all_is_dropped() -> None:
    assert draw([7], range(2000), 64, threshold(0.0)).all()
    assert draw([7], range(2000), 64, threshold(1 - 1e-9)).float().mean() < 1e-3
    assert dropped(torch.ones(0, 4), 0.5, 0, 1, "m").shape == (0, 4)


def levels(key: int, tokens: int, width: int) -> torch.Tensor:
    """The upper byte of what decides about each element, found by thresholds alone: [T, I]."""
    return sum(
        draw([key], range(tokens), width, level * 256 - 32768).long()[0] for level in range(1, 256)
    )


def chi_squared(counts: torch.Tensor) -> float:
    """In standard deviations from what independent draws have."""
    expected = counts.sum() / len(counts)
    freedom = len(counts) - 1
    return float(((counts - expected).square().sum() / expected - freedom) / (2 * freedom) ** 0.5)


def test_values_neighbours_and_streams_are_as_independent_draws() -> None:
    """Each byte as often as others, pairs of them in columns, lanes, tokens, steps and modules."""
    keys = [
        stream_key(dropout_step_key(seed, step), dropout_module_key(module))
        for seed, step, module in [(0, 1, "a"), (0, 2, "a"), (1, 1, "a"), (0, 1, "b")]
    ]
    first, *others = (levels(key, 400, 400) for key in keys)
    assert abs(chi_squared(torch.bincount(first.flatten(), minlength=256))) < 5
    for lane in range(4):
        counts = torch.bincount(first[:, lane::4].flatten(), minlength=256)
        assert abs(chi_squared(counts)) < 5
    neighbours = [first[:, :-distance] for distance in (1, 2, 3, 4)]
    pairs = [(a, first[:, -a.shape[1] :]) for a in neighbours]
    pairs += [(first[:-1], first[1:]), *((first, other) for other in others)]
    for a, b in pairs:
        joint = (a // 16) * 16 + b // 16
        assert abs(chi_squared(torch.bincount(joint.flatten(), minlength=256))) < 5
    # Sums over tokens and over columns spread as sums of independent ones do.
    deviations = first.double() - 127.5
    for dim in (0, 1):
        spread = deviations.sum(dim).std() / (400 * (256**2 - 1) / 12) ** 0.5
        assert 0.85 < spread < 1.15
