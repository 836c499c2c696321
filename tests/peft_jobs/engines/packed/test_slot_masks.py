"""Masks of several slots at once against those of each trial alone, which are there for a layer."""

import gc
import weakref
from typing import Any

import pytest
import torch

from peft_jobs import dropout_masks
from peft_jobs.dropout_masks import MaskColumns, layer_of
from peft_jobs.engines.packed.micro_batches import Chunk, MicroBatch
from peft_jobs.engines.packed.slot_masks import SlotMasks
from peft_jobs.methods.method import checkpoint_activations
from peft_jobs.randomness import dropout_module_key, dropped
from tests.support.packed_runs import Driven

WIDTHS = {"layers.0.q": 5, "layers.0.down": 12, "layers.1.q": 5, "head": 3}
SEEDS, RATES, LONGEST, STEPS = (3, 3, 9), (0.0, 0.4, 0.15), (7, 4, 6), (1, 1, 8)
LENGTH = 6
"""To which the pack is padded; one slot's other rows are longer."""


def chunks() -> list[Chunk]:
    """Rows 1 and 2 of micro-batches of four."""
    found = []
    for longest, micro_step in zip(LONGEST, STEPS, strict=True):
        rows = [{"input_ids": [0] * length} for length in (longest, 2, 3, 4)]
        found.append(Chunk(MicroBatch(rows), micro_step, 1, 3, 1.0, ends_step=False))
    return found


@pytest.fixture
def masks() -> SlotMasks:
    keys = {name: dropout_module_key(name) for name in WIDTHS}
    layers = {name: layer_of(name) for name in WIDTHS}
    columns = MaskColumns(WIDTHS, keys, layers, torch.device("cpu"))
    return SlotMasks(columns, SEEDS, RATES, chunks(), [LENGTH])


@pytest.mark.parametrize("module", WIDTHS)
def test_each_slot_keeps_what_it_keeps_alone(masks: SlotMasks, module: str) -> None:
    width = WIDTHS[module]
    kept = masks(module, 2 * LENGTH).view(3, 2, LENGTH, width)
    pooled = masks(module, 2)
    assert kept[0].all(), "of nothing that is dropped"
    assert masks.factors_K.tolist() == [1.0, 1 / 0.6, 1 / 0.85]
    for slot in (1, 2):
        own = min(LONGEST[slot], LENGTH)
        key = (RATES[slot], SEEDS[slot], STEPS[slot], module)
        alone = dropped(torch.ones(4, LONGEST[slot], width), *key) != 0
        assert torch.equal(kept[slot, :, :own], alone[1:3, :own])
        alone = dropped(torch.ones(4, width), *key) != 0
        assert torch.equal(pooled[slot], alone[1:3]), "one vector for each row"


def test_layers_are_told_by_their_first_number() -> None:
    names = ["model.layers.11.mlp.up", "h.3", "model.layers.11.experts.2", "pooler.dense", "a2.b"]
    assert [layer_of(name) for name in names] == [
        *("model.layers.11", "h.3", "model.layers.11", "pooler.dense", "a2.b")
    ]


def specs_of(mixed: Any, number: int, rate: float) -> list[Any]:
    spec = mixed(**{"adapter.lora_dropout": rate})[0]
    return [spec.with_params({"seed": seed}) for seed in range(number)]


@pytest.mark.parametrize("checkpointed", [False, True])
def test_masks_of_one_layer_at_most_are_there(
    double: Any, mixed: Any, checkpointed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, rows = double
    drawn: list[tuple[Any, float]] = []
    alive: list[int] = []

    def noting(*args: Any) -> torch.Tensor:
        gc.collect()
        alive.append(sum(ref() is not None for ref, _ in drawn))
        mask = draw(*args)
        drawn.append((weakref.ref(mask.untyped_storage()), mask.sum().item()))
        return mask

    draw = dropout_masks.draw_kept
    monkeypatch.setattr(dropout_masks, "draw_kept", noting)
    with Driven(base, rows, specs_of(mixed, 2, 0.2), 2) as driven:
        if checkpointed:
            checkpoint_activations(base.model)
        driven.step(range(2))
    first, second, again, last = (total for _, total in [*drawn, drawn[-1]][:4])
    assert len(drawn) == 3, "two layers forward, and the first again on the way back"
    assert first == again == last
    assert first != second
    assert alive == [0, 0, 0]
