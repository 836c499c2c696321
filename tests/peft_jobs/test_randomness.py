import math

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import Kosmos2Config, OPTConfig, OPTForCausalLM

from peft_jobs.base_dropout import has_dropout, key_base_dropout
from peft_jobs.randomness import (
    Clock,
    KeyedDropout,
    TrialMasks,
    dropped,
    epoch_order,
    generator,
    initial_lora_A,
    key,
)
from tests.support.operators import Operators


def test_keys_differ_by_every_part_and_its_place() -> None:
    keys = [key("a", 1), key("a", "1"), key("a1"), key(1, "a"), key("a", 1, ""), key("a", 2)]
    assert len(set(keys)) == len(keys)
    assert all(0 <= value < 2**64 for value in keys)


def test_draws_stay_what_recorded_trials_have_drawn() -> None:
    assert key("lora_A", 7, "model.layers.0") == 352859523691147624
    assert epoch_order(0, 0, 6).tolist() == [0, 5, 4, 2, 3, 1]
    first = initial_lora_A(0, "m", 1, 3)
    assert first.tolist()[0] == pytest.approx([0.129678, 0.0629030, 0.174992], rel=1e-5)
    mask = dropped(torch.ones(8), 0.5, 0, 1, "m")
    assert mask.tolist() == [0, 2, 0, 2, 0, 2, 2, 2]


def test_epoch_order_is_a_permutation_of_its_own_for_every_epoch() -> None:
    orders = [epoch_order(3, epoch, 50) for epoch in range(3)]
    assert all(sorted(order.tolist()) == list(range(50)) for order in orders)
    assert not torch.equal(orders[0], orders[1])
    assert torch.equal(orders[2], epoch_order(3, 2, 50))
    assert not torch.equal(orders[0], epoch_order(4, 0, 50))


def test_initial_A_has_the_distribution_that_peft_draws_from() -> None:
    ours = initial_lora_A(0, "m", 64, 300)
    bound = 1 / math.sqrt(300)  # kaiming_uniform with a=sqrt(5): sqrt(6 / (6 * fan_in))
    assert ours.abs().max() <= bound
    assert ours.abs().max() > 0.99 * bound
    assert abs(ours.mean()) < 0.02 * bound
    assert ours.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert not torch.equal(ours, initial_lora_A(0, "n", 64, 300))
    assert not torch.equal(ours, initial_lora_A(1, "m", 64, 300))


def test_no_draw_reads_or_moves_the_global_generator() -> None:
    state = torch.get_rng_state()
    first = (
        initial_lora_A(0, "m", 4, 8),
        epoch_order(0, 0, 9),
        dropped(torch.ones(9), 0.5, 0, 1, "m"),
    )
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    again = (
        initial_lora_A(0, "m", 4, 8),
        epoch_order(0, 0, 9),
        dropped(torch.ones(9), 0.5, 0, 1, "m"),
    )
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_dropout_keeps_the_mean_and_zeroes_the_asked_share() -> None:
    out = dropped(torch.ones(400, 400), 0.25, 0, 0, "m")
    assert out.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert (out == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)


def test_dropout_mask_depends_on_seed_step_and_module() -> None:
    x = torch.ones(1000)
    mask = dropped(x, 0.5, 1, 2, "m")
    for other in ((2, 2, "m"), (1, 3, "m"), (1, 2, "n")):
        agreement = (dropped(x, 0.5, *other) == mask).float().mean().item()
        assert 0.4 < agreement < 0.6
    assert torch.equal(dropped(x, 0.5, 1, 2, "m"), mask)


def test_keyed_dropout_is_the_identity_in_eval_mode_and_has_no_state() -> None:
    module = KeyedDropout(0.5, "m", TrialMasks(0, Clock()))
    x = torch.randn(8)
    assert module.eval()(x) is x
    assert module.state_dict() == {}


def test_masks_of_a_layer_drawn_together_are_those_of_each_module() -> None:
    """Of any widths, tokens and rates in a layer, also where they change on the way."""
    shapes = {"layers.0.q": (2, 3, 8), "layers.0.k": (4, 8), "layers.0.o": (2, 3, 7), "head": (9,)}
    clock = Clock()
    masks = TrialMasks(4, clock)
    modules = [KeyedDropout(0.3, name, masks) for name in shapes]
    modules[2].p = 0.5
    for clock.micro_step in (1, 2, 3, 2, 2):
        for module, shape in zip(modules, shapes.values(), strict=True):
            length = clock.micro_step
            for x in (torch.randn(shape), torch.randn(length, *shape), torch.randn(5, 6)):
                alone = dropped(x, module.p, 4, clock.micro_step, module.module)
                assert torch.equal(module(x), alone)
                assert torch.equal(module(x), alone)
        modules.reverse()
        shapes = dict(reversed(shapes.items()))
    modules[0].p = 0.9
    x = torch.ones(100, 8)
    assert torch.equal(modules[0](x), dropped(x, 0.9, 4, clock.micro_step, modules[0].module))


def test_a_layer_is_drawn_once_for_all_its_modules() -> None:
    clock = Clock()
    masks = TrialMasks(4, clock)
    modules = [KeyedDropout(0.3, f"layers.0.{name}", masks) for name in "abcdefg"]
    x = torch.ones(4, 8)
    for clock.micro_step in (1, 2, 3):
        with Operators() as operators:
            for module in modules:
                module(x)
    assert operators.launches["ge"] == 1
    assert operators.launches.total() <= 7 * 3 + 20


def test_recomputation_draws_the_same_mask() -> None:
    torch.manual_seed(0)
    clock = Clock()
    dropout = KeyedDropout(0.5, "m", TrialMasks(0, clock))
    net = nn.Sequential(nn.Linear(8, 8), dropout, nn.Linear(8, 8)).train()
    x = torch.randn(4, 8)
    gradients = []
    for recompute in (False, True):
        clock.micro_step = 5
        net.zero_grad()
        out = checkpoint(net, x, use_reentrant=False) if recompute else net(x)
        out.square().sum().backward()
        gradients.append(net[0].weight.grad.clone())
    assert torch.equal(*gradients)
    clock.micro_step = 6
    assert not torch.equal(net(x), out)


def test_generators_of_equal_keys_agree() -> None:
    draws = [torch.rand(3, generator=generator("cpu", "x", 1)) for _ in range(2)]
    assert torch.equal(*draws)


def test_layers_that_a_base_leaves_out_follow_seed_and_step() -> None:
    """LayerDrop (OPT, BART, M2M100) draws from the global generator, at rates that a configuration
    names: its own, or that of the text part in it."""
    sizes = {"hidden_size": 16, "ffn_dim": 16, "num_attention_heads": 2, "word_embed_proj_dim": 16}
    rates = {"dropout": 0.0, "attention_dropout": 0.0, "layerdrop": 0.5}
    config = OPTConfig(vocab_size=50, num_hidden_layers=8, **sizes, **rates)
    model, clock, ids = OPTForCausalLM(config).train(), Clock(), torch.arange(9)[None]
    nested = nn.Module()
    nested.config = Kosmos2Config(  # type: ignore[assignment]
        text_config=dict.fromkeys(("dropout", "attention_dropout", "activation_dropout"), 0.0)
        | {"layerdrop": 0.1},
        vision_config={"dropout": 0.0, "attention_dropout": 0.0},
    )
    assert has_dropout(nested)
    nested.config.text_config.layerdrop = 0.0
    assert not has_dropout(nested)
    key_base_dropout(model, 3, clock)
    losses = []
    for clock.micro_step in (1, 2, 3, 1, 2, 3):
        torch.rand(clock.micro_step)  # others draw too
        losses.append(model(input_ids=ids, labels=ids).loss.item())
    assert losses[:3] == losses[3:]
    assert len(set(losses)) == 3
