"""What a base drops itself follows seed, micro-step and place, and is torch's otherwise."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from peft_jobs.base_dropout import KeyedBaseDropout, key_base_dropout
from peft_jobs.methods.method import checkpoint_activations
from peft_jobs.randomness import Clock

SHAPES = {"all": (4, 4), "grouped": (4, 2)}


class Attention(nn.Module):
    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return functional.scaled_dot_product_attention(*args, **kwargs)


def masks() -> dict[str, dict[str, Any]]:
    allowed = torch.ones(2, 1, 5, 5, dtype=torch.bool).tril()
    allowed[1, :, :, 3:] = False
    added = torch.zeros(2, 1, 5, 5).masked_fill(~allowed, -1e9)
    nothing = allowed.clone()
    nothing[0, :, 2] = False
    return {
        "none": {},
        "causal": {"is_causal": True},
        "allowed": {"attn_mask": allowed},
        "added": {"attn_mask": added},
        "a query that sees nothing": {"attn_mask": nothing},
        "scaled": {"scale": 0.3},
    }


@pytest.mark.parametrize("kind", masks())
@pytest.mark.parametrize("heads", SHAPES.values(), ids=SHAPES)
def test_attention_is_torch_s_but_for_what_it_drops(kind: str, heads: tuple[int, int]) -> None:
    source = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(2, number, 5, 8, generator=source) for number in (heads[0], heads[1], heads[1])
    )
    options = masks()[kind] | ({"enable_gqa": True} if heads[0] != heads[1] else {})
    attention = Attention()
    keyed = KeyedBaseDropout(attention)
    drawn: list[tuple[torch.Size, float]] = []

    def draw(x: torch.Tensor, p: float, where: str) -> torch.Tensor:
        drawn.append((x.shape, p))
        return x

    keyed.draw = draw
    with keyed:
        found = attention(query, key, value, dropout_p=0.25, **options)
    expected = attention(query, key, value, **options)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    assert drawn == [((2, heads[0], 5, 5), 0.25)]


def test_attention_of_three_dimensions_and_in_half_precision() -> None:
    source = torch.Generator().manual_seed(0)
    parts = [torch.randn(2, 5, 64, generator=source) for _ in range(3)]
    attention = Attention()
    keyed = KeyedBaseDropout(attention)
    keyed.draw = lambda x, p, where: x
    half = [part.bfloat16() for part in parts]
    with keyed:
        found = attention(*parts, dropout_p=0.1, is_causal=True)
        rounded = attention(*half, dropout_p=0.1, is_causal=True)
        level = attention(*parts, dropout_p=0.1, scale=0.0)
    expected = attention(*parts, is_causal=True)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(level, parts[2].mean(1, keepdim=True).expand_as(level))
    assert rounded.dtype == torch.bfloat16
    torches = (attention(*half, is_causal=True).float() - expected).abs()
    assert (rounded.float() - expected).abs().mean() < 2 * torches.mean()


class Block(nn.Module):
    """Drops in a module, and in two places of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Dropout(0.25)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        first = functional.dropout(x, 0.25, self.training)
        second = functional.dropout(x, 0.25, self.training)
        return [first, second, self.inner(x)]


def test_masks_are_those_of_seed_step_and_place() -> None:
    clock, x = Clock(1), torch.ones(8, 16, 64)
    blocks = [Block(), Block()]
    for block, seed in zip(blocks, (3, 4), strict=True):
        assert key_base_dropout(block, seed, clock) is not None
    drawn = [blocks[0](x), blocks[1](x)]
    torch.rand(5)  # others draw too
    again = blocks[0](x)
    clock.micro_step = 2
    later = blocks[0](x)
    assert all(torch.equal(*pair) for pair in zip(drawn[0], again, strict=True))
    different = [*drawn[0], *drawn[1], *later]
    for number, one in enumerate(different):
        assert one.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
        assert (one == 0).float().mean().item() == pytest.approx(0.25, abs=0.02)
        assert not any(torch.equal(one, other) for other in different[:number])
    assert all(torch.equal(found, x) for found in blocks[0].eval()(x))


def test_what_is_dropped_whole_is_zero() -> None:
    with KeyedBaseDropout(Block()):
        assert not functional.dropout(torch.ones(3, 4), 1.0).any()


def test_an_evaluation_is_not_watched() -> None:
    """A mode of torch's is asked at every function."""
    block = Block()
    key_base_dropout(block, 0, Clock(1))
    seen: list[int] = []
    block.inner.register_forward_hook(lambda *_: seen.append(torch._C._len_torch_function_stack()))
    block(torch.ones(2))
    block.eval()(torch.ones(2))
    assert seen == [1, 0]


def test_what_is_computed_again_in_a_backward_drops_the_same(tiny_bert_path: Any) -> None:
    from transformers import BertForSequenceClassification

    ids = torch.randint(6, 100, (3, 9), generator=torch.Generator().manual_seed(0))
    gradients = []
    for checkpointing in (False, True):
        model = BertForSequenceClassification.from_pretrained(tiny_bert_path)
        for name, parameter in model.named_parameters():
            if "classifier" in name:
                parameter.data.fill_(0.1).view(-1)[::2] *= -1
        again = key_base_dropout(model, 0, Clock(1))
        if checkpointing:
            checkpoint_activations(model, again)
        model.train()
        model(input_ids=ids, labels=torch.tensor([0, 1, 0])).loss.backward()
        weight = model.get_submodule("bert.encoder.layer.0.attention.self.query").weight
        gradients.append(weight.grad)
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(*gradients)


def test_an_error_in_the_forward_leaves_torch_as_it_was() -> None:
    block = Block()
    key_base_dropout(block, 0, Clock(1))
    with pytest.raises(TypeError):
        block()
    x = torch.ones(1000)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first = functional.dropout(x, 0.5)
        assert not torch.equal(functional.dropout(x, 0.5), first), "drawn by torch again"
