"""How many trials at a time are worth it: found before the first one, on the base as it is."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from peft_jobs.engines.packed.packed_engine import PackedEngine
from peft_jobs.engines.packed.slot_count import MAX_CPU_SLOTS, largest_worthwhile


@pytest.mark.parametrize(
    ("fixed", "per_slot", "expected"),
    [
        (1.0, 0.0, 16),  # all is shared
        (0.0, 1.0, 1),  # nothing is
        (0.7, 1.0, 2),  # 1 slot: 0.59, 2: 0.74, 4: 0.851 < 1.15 * 0.741
        (2.5, 1.0, 8),  # 0.29, 0.44, 0.62, 0.76, 0.865 < 1.15 * 0.762
    ],
)
def test_slots_are_doubled_as_long_as_that_is_worth_it(
    fixed: float, per_slot: float, expected: int
) -> None:
    assert largest_worthwhile(lambda slots: slots / (fixed + per_slot * slots), 16) == expected


def test_memory_that_runs_out_ends_the_search() -> None:
    def rate(slots: int) -> float:
        if slots > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return float(slots)

    assert largest_worthwhile(rate, 32) == 4


def test_what_cannot_be_tried_means_one_slot_and_a_warning(caplog: Any) -> None:
    def rate(_slots: int) -> float:
        raise KeyError("no such thing")

    assert largest_worthwhile(rate, 32) == 1
    assert "could not try steps of 1 slots" in caplog.text


def test_a_sweep_of_packable_trials_gets_a_number_and_the_base_stays_as_it_was(
    cache: str,
    trial: Any,
    common: dict[str, Any],
    base_is_unchanged: Callable[[Any], None],
    caplog: Any,
) -> None:
    spec = trial({**common, "quantization.scheme": "nf4"})
    engine = PackedEngine(cache, threads=1)
    base, _ = engine.solo.check(spec)
    base_is_unchanged(base)
    modules = [type(module) for module in base.model.modules()]
    prepared = engine.prepare(spec, [])
    assert prepared.slots in (1, 2, 4, 8)
    assert prepared.slots <= MAX_CPU_SLOTS
    assert "could not try" not in caplog.text
    assert [type(module) for module in base.model.modules()] == modules
    assert not base.model.training


def test_a_wanted_number_is_taken_and_one_is_enough_where_nothing_can_be_packed(
    cache: str, trial: Any, common: dict[str, Any]
) -> None:
    packable, other = trial(common), trial({**common, "adapter.bias": "all"})
    engine = PackedEngine(cache, num_slots=3, threads=1)
    assert engine.prepare(packable, []).slots == 3
    assert engine.prepare(other, []).slots == 1
    assert engine.prepare(other, [packable]).slots == 3, "some can"
