"""LoftQ's factors are the best of their rank, to within a per cent where the matrix is large."""

import pytest
import torch
from bitsandbytes import functional

from peft_jobs.methods.loftq import EXACT, largest


def lost_by_nf4(outputs: int, inputs: int) -> torch.Tensor:
    weight = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(0)) * 0.02
    packed, state = functional.quantize_4bit(weight, quant_type="nf4")
    found: torch.Tensor = weight - functional.dequantize_4bit(packed, state)
    return found


@pytest.mark.parametrize("shape", [(256, 512), (EXACT + 64, EXACT + 192)])
def test_factors_hold_what_the_best_of_their_rank_do(shape: tuple[int, int]) -> None:
    """The best loses the squares of the singular values that are left out (Eckart and Young)."""
    r, matrix = 8, lost_by_nf4(*shape)
    squares = torch.linalg.svdvals(matrix).square()
    left, values, right = largest(matrix, r, 1)
    assert (left.shape, values.shape, right.shape) == ((shape[0], r), (r,), (r, shape[1]))
    for vectors in (left.T, right):
        torch.testing.assert_close(vectors @ vectors.T, torch.eye(r), atol=1e-4, rtol=0)
    held = matrix.square().sum() - (matrix - left * values @ right).square().sum()
    share = float(held / squares[:r].sum())
    assert share == pytest.approx(1.0, abs=1e-4 if min(shape) <= EXACT else 1e-2)


def test_factors_of_a_large_matrix_follow_the_seed_and_leave_torch_as_it_was() -> None:
    matrix = lost_by_nf4(EXACT + 1, EXACT + 1)
    found = []
    for state in (1, 2):
        torch.manual_seed(state)
        found.append(largest(matrix, 4, 7))
        drawn = torch.rand(1)
        torch.manual_seed(state)
        assert torch.equal(drawn, torch.rand(1))
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))
    assert not torch.equal(largest(matrix, 4, 8)[1], found[0][1])
