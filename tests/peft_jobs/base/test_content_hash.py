import pytest
import torch
from torch import nn

from peft_jobs.base.content_hash import ROW, content_hash, state_tensors, tensor_sum


def reference_sum(tensor: torch.Tensor) -> int:
    """The same sum in Python's integers, one word at a time."""
    source = torch.Generator().manual_seed(0)
    low, high = -(1 << 63), (1 << 63) - 1
    drawn = torch.randint(low, high, (2, ROW), generator=source, dtype=torch.int64) | 1
    columns, rows = drawn.tolist()
    raw = bytes(tensor.contiguous().reshape(-1).view(torch.uint8).tolist())
    raw += b"\0" * (-len(raw) % 4)
    words = [int.from_bytes(raw[i : i + 4], "little", signed=True) for i in range(0, len(raw), 4)]
    total = sum(w * columns[i % ROW] * rows[i // ROW] for i, w in enumerate(words))
    return (total + 2**63) % 2**64 - 2**63


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(ROW + 1000),
        torch.randn(2 * ROW),
        torch.randn(7, 3).to(torch.bfloat16),
        torch.arange(5, dtype=torch.uint8),
        torch.tensor(3.5),
        torch.arange(9, dtype=torch.uint8)[1:],
        torch.randn(4, 6).T,
        torch.empty(0),
    ],
    ids=lambda tensor: f"{tensor.dtype}{tuple(tensor.shape)}",
)
def test_sum_equals_a_reference_in_python_integers(tensor: torch.Tensor) -> None:
    assert tensor_sum(tensor).item() == reference_sum(tensor)


def test_every_single_changed_bit_changes_the_hash() -> None:
    module = nn.Linear(9, 5)
    before = content_hash(module)
    bits = module.weight.data.view(torch.int32).view(-1)
    for place in range(0, len(bits), 7):
        for bit in range(32):
            bits[place] ^= 1 << bit if bit < 31 else -(1 << 31)
            assert content_hash(module) != before
            bits[place] ^= 1 << bit if bit < 31 else -(1 << 31)
    assert content_hash(module) == before


def test_swaps_and_pairs_of_sign_flips_change_the_hash() -> None:
    module = nn.Linear(64, 64)
    before = content_hash(module)
    flat = module.weight.data.view(-1)
    for a in range(0, 4000, 37):
        for b in (a + 1, a + 64):
            original = flat.clone()
            flat[a], flat[b] = original[b], original[a]
            assert content_hash(module) != before
            flat.copy_(original)
            flat[[a, b]] *= -1
            assert content_hash(module) != before
            flat.copy_(original)
    assert content_hash(module) == before


def test_quantization_state_is_part_of_the_hash(llama_base: object) -> None:
    for scheme in ("int8", "nf4", "fp4"):
        base = llama_base(scheme)  # type: ignore[operator]
        before = base.state_hash()
        layer = "model.layers.1.mlp.up_proj"
        parts = {name for name, _ in state_tensors(base.model) if name.startswith(layer)}
        wanted = {"SCB"} if scheme == "int8" else {"state.absmax", "state.code"}
        assert {f"{layer}.{part}" for part in ("weight", *wanted)} <= parts
        for part in parts:
            tensor = dict(state_tensors(base.model))[part].view(-1)
            kept = tensor[-1].clone()
            tensor.data[-1] += 1
            assert base.state_hash() != before
            tensor.data[-1] = kept
        assert base.state_hash() == before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same_hash() -> None:
    module = nn.Linear(3000, 301)
    assert content_hash(module) == content_hash(module.cuda())
