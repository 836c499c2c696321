"""In float64 a packed trial is the plain loop's trial, whatever is beside it."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from peft_jobs.engines.packed.adapter import checkpoint_tensors
from peft_jobs.engines.packed.parts import initial_values, parts_of
from peft_jobs.engines.packed.row import step_rows
from peft_jobs.methods.method import checkpoint_activations
from peft_jobs.tasks import TASKS
from peft_jobs.tasks.causal_lm import CausalLM
from tests.support.packed_runs import Driven, plain_losses

EXACT = 1e-10
NUM_STEPS = 12


def apart(one: list[float], other: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def test_five_mixed_trials_are_those_of_plain_loops(
    double: Any, mixed: Any, base_is_unchanged: Callable[[Any], None]
) -> None:
    base, rows = double
    base_is_unchanged(base)
    specs = mixed()
    expected = [plain_losses(base, rows, spec, NUM_STEPS) for spec in specs]
    with Driven(base, rows, specs, NUM_STEPS) as driven:
        found = driven.to_end()
    for one, other in zip(expected, found, strict=True):
        assert apart(one, other) < EXACT
        assert max(one) - min(one) > 0.05, "training changes something"


OPTIONS: dict[str, dict[str, Any]] = {
    "rslora": {"adapter.use_rslora": True},
    "gradient checkpointing": {"training.gradient_checkpointing": True},
    "patterns": {
        "adapter.rank_pattern": {"q_proj": 6, r"layers\.1\..*v_proj": 3},
        "adapter.alpha_pattern": {"down_proj|v_proj": 40},
    },
    "rslora patterns": {"adapter.rank_pattern": {"q_proj": 2}, "adapter.use_rslora": True},
    "upper layer": {"adapter.layers_to_transform": [1]},
    "gaussian": {"adapter.init_lora_weights": "gaussian"},
    "orthogonal": {"adapter.init_lora_weights": "orthogonal"},
    "lora+": {"adapter.loraplus_lr_ratio": 8.0},
}
CHANGE_NOTHING = ("gradient checkpointing",)


@pytest.mark.parametrize("params", OPTIONS.values(), ids=OPTIONS)
def test_options_of_a_trial_are_those_of_plain_loops(
    double: Any, mixed: Any, params: dict[str, Any]
) -> None:
    from peft_jobs.base.snapshot import Snapshot

    base, rows = double
    specs, changing_nothing = mixed(**params)[:3], [OPTIONS[name] for name in CHANGE_NOTHING]
    plain = [plain_losses(base, rows, spec, 6) for spec in specs]
    without = [plain_losses(base, rows, spec, 6) for spec in mixed()[:3]]
    snapshot = Snapshot.of(base.model)
    with Driven(base, rows, specs, 6) as driven:
        if params.get("training.gradient_checkpointing"):
            checkpoint_activations(base.model)
        found = driven.to_end()
    snapshot.restore()
    for one, other, different in zip(plain, found, without, strict=True):
        assert apart(one, other) < EXACT
        assert (apart(one, different) > 1e-6) == (params not in changing_nothing)


def test_logits_in_chunks_change_nothing(
    double: Any, mixed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, rows = double
    specs = mixed()[:3]
    expected = [plain_losses(base, rows, spec, 6) for spec in specs]
    sizes: list[list[int]] = []
    """Positions in each call of the head, by run."""
    base.model.lm_head.register_forward_hook(
        lambda _head, _args, logits: sizes[-1].append(logits.shape[:-1].numel())
    )
    for most in (1 << 26, 3 * 128):
        sizes.append([])
        monkeypatch.setitem(TASKS, "causal_lm", CausalLM(most_logits=most))
        with Driven(base, rows, specs, 6) as driven:
            found = driven.to_end()
        for one, other in zip(expected, found, strict=True):
            assert apart(one, other) < EXACT
    base.model.lm_head._forward_hooks.clear()  # restoring the base has put a copy in
    whole, chunked = sizes
    assert min(whole) > 3, "a step has several chunks"
    assert chunked == [
        size
        for number in whole
        for size in (1, *[3] * (number // 3), *[number % 3] * (number % 3 > 0))
    ], "a look at what the model does to its logits, and then chunks of three"


def test_neither_slot_number_nor_packmates_nor_width_change_a_trial(
    double: Any, mixed: Any
) -> None:
    base, rows = double
    specs = mixed()
    with Driven(base, rows, specs, 6) as driven:
        expected = driven.to_end()
    order = [3, 0, 4, 2, 1]
    with Driven(base, rows, [specs[number] for number in order], 6) as driven:
        permuted = driven.to_end()
    for place, number in enumerate(order):
        assert apart(permuted[place], expected[number]) < EXACT
    with Driven(base, rows, specs, 6) as driven:
        while any(len(found) < 6 for found in driven.losses):
            for group in ([0, 3], [1, 2], [4], [0, 1], [0, 2, 3]):
                live = [slot for slot in group if len(driven.losses[slot]) < 6]
                if live:
                    driven.step(live)
        for one, other in zip(driven.losses, expected, strict=True):
            assert apart(one, other) < EXACT


def test_a_pruned_slot_is_refilled_and_its_packmates_notice_nothing(
    double: Any, mixed: Any
) -> None:
    base, rows = double
    specs = mixed(**{"training.gradient_accumulation_steps": 1})
    newcomer = specs[3].with_params({"seed": 99, "adapter.lora_dropout": 0.2, "adapter.r": 4})
    parts = parts_of(newcomer, base.model)
    values = initial_values(newcomer, parts, base.model)
    with Driven(base, rows, specs, NUM_STEPS) as driven:
        expected = driven.to_end()
    with Driven(base, rows, specs, NUM_STEPS) as driven:
        while len(driven.losses[3]) < 7:
            driven.step([slot for slot in range(5) if len(driven.losses[slot]) < NUM_STEPS])
        driven.refill(3, newcomer, parts, values)
        found = driven.to_end()
    for slot in (0, 1, 2, 4):
        assert apart(found[slot], expected[slot]) < EXACT
    assert apart(found[3], plain_losses(base, rows, newcomer, NUM_STEPS)) < EXACT


def test_a_slot_that_is_not_a_number_stays_alone(double: Any, mixed: Any) -> None:
    base, rows = double
    specs = mixed(**{"training.gradient_accumulation_steps": 1})
    with Driven(base, rows, specs, 6) as driven:
        expected = driven.to_end()
    with Driven(base, rows, specs, 6) as driven:
        driven.step(range(5))
        driven.pack.values_KP[2] *= float("inf")
        found = driven.to_end()
        poisoned = driven.pack.values_KP.isnan().any(dim=1).tolist()
    assert poisoned == [False, False, True, False, False]
    assert found[2][-1] != found[2][-1]
    for slot in (0, 1, 3, 4):
        assert apart(found[slot], expected[slot]) < EXACT


def test_room_that_is_not_a_trials_own_stays_zero(double: Any, mixed: Any) -> None:
    base, rows = double
    specs = mixed(**{"training.weight_decay": 0.5, "training.max_grad_norm": 0.01})
    with Driven(base, rows, specs, 40) as driven:
        driven.to_end()
        pack = driven.pack
        for slot, (spec, parts) in enumerate(zip(specs, driven.parts, strict=True)):
            own = torch.zeros(pack.layout.size, dtype=torch.bool)
            for place in pack.layout.places:
                if place.module in parts.adapted:
                    view = own[place.start : place.stop].view(place.shape)
                    ranks = view if place.part == "lora_A" else view.T
                    ranks[: spec.adapter.r] = True
            for rows_KP in (pack.values_KP, *pack.moments_KP):
                assert not rows_KP[slot][~own].any()
            assert pack.values_KP[slot][own].count_nonzero() > 0.99 * own.sum()


def test_only_the_due_slot_is_stepped(double: Any, mixed: Any) -> None:
    base, rows = double
    with Driven(base, rows, mixed()[:3], 6) as driven:
        driven.step([0, 1, 2])
        before = [rows_KP.clone() for rows_KP in (driven.pack.values_KP, *driven.pack.moments_KP)]
        step_rows([driven.pack_rows[0]])
        for rows_KP, old in zip(
            (driven.pack.values_KP, *driven.pack.moments_KP), before, strict=True
        ):
            assert torch.equal(rows_KP[1:], old[1:])
        assert driven.pack.gradients_KP[1:].abs().amax(dim=1).min() > 0
        assert not driven.pack.gradients_KP[0].any()


def test_a_captured_trial_goes_on_in_another_pack(double: Any, mixed: Any) -> None:
    base, rows = double
    specs = mixed()[:3]
    with Driven(base, rows, specs, 8) as driven:
        expected = [list(found) for found in driven.to_end()]
    with Driven(base, rows, specs, 8) as driven:
        for _ in range(7):  # in the middle of an optimizer step of the third
            driven.step([0, 1, 2])
        held, feeds = [row.capture() for row in driven.pack_rows], driven.feeds
        partial, losses = driven._loss, driven.losses
    with Driven(base, rows, [specs[2], specs[0], specs[1]], 8) as driven:
        for slot, number in enumerate((2, 0, 1)):
            driven.pack_rows[slot] = driven._pack_row(slot, held[number])
            driven.feeds[slot], driven.losses[slot] = feeds[number], losses[number]
            driven._loss[slot] = partial[number]
        found = driven.to_end()
    for slot, number in enumerate((2, 0, 1)):
        assert apart(found[slot], expected[number]) < EXACT


def test_a_snapshot_names_what_peft_names(double: Any, mixed: Any) -> None:
    from peft_jobs.methods import METHODS

    base, rows = double
    spec = mixed()[1]
    with Driven(base, rows, [spec, mixed()[2]], 2) as driven:
        driven.to_end()
        held = driven.pack_rows[0].copies(partial(checkpoint_tensors, parts=driven.parts[0])).read()
    model = METHODS["lora"].attach(base, spec)
    own = {name: p.shape for name, p in model.named_parameters() if p.requires_grad}
    METHODS["lora"].detach(model)
    prefix = "model/"
    assert {k.removeprefix(prefix): v.shape for k, v in held.items() if k.startswith(prefix)} == own
    kinds = {key.rpartition("/")[2] for key in held if key.startswith("optimizer/")}
    assert kinds == {"exp_avg", "exp_avg_sq", "step"}


class Products(TorchDispatchMode):
    """Counts the matrix multiplications that reach the device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in ("mm", "bmm", "addmm", "baddbmm", "linear", "matmul"):
            self.count += 1
        return func(*args, **(kwargs or {}))


def test_the_number_of_products_does_not_depend_on_the_number_of_slots(
    double: Any, mixed: Any
) -> None:
    base, rows = double
    counts = []
    for number in (1, 2, 8):
        specs = [mixed()[0].with_params({"seed": seed}) for seed in range(number)]
        with Driven(base, rows, specs, 2) as driven, Products() as products:
            driven.step(range(number))
        counts.append(products.count)
    assert counts[0] > 2 * 14, "two layers of seven adapted modules"
    assert counts == [counts[0]] * 3
