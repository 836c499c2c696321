"""What a packed step asks of a device: launches and waits, by the number of slots."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from peft_jobs.engines.packed.row import step_rows
from peft_jobs.engines.packed.step import Work, packed_step
from peft_jobs.tasks import TASKS
from tests.support.operators import Operators
from tests.support.packed_runs import Driven

NUMBERS = (1, 2, 4, 8, 16, 32)


def specs_of(mixed: Any, number: int, **params: Any) -> list[Any]:
    spec = mixed(**params)[0]
    return [spec.with_params({"seed": seed}) for seed in range(number)]


def step(driven: Driven, specs: Sequence[Any]) -> Operators:
    """The forward and the backward of a packed step."""
    works = [Work(n, spec, driven.feeds[n].take(4)) for n, spec in enumerate(specs)]
    with Operators() as operators:
        packed_step(
            driven.pack,
            driven.base.model,
            TASKS["causal_lm"],
            works,
            pad_token_id=driven.base.tokenizer.pad_token_id,
            device=driven.base.device,
            training=specs[0].training,
        )
    return operators


def launches(base: Any, rows: Any, specs: list[Any]) -> int:
    with Driven(base, rows, specs, 2) as driven:
        return step(driven, specs).launches.total()


def test_launches_depend_on_no_number_of_slots(double: Any, mixed: Any) -> None:
    plain, dropping = (
        [
            launches(*double, specs_of(mixed, number, **{"adapter.lora_dropout": rate}))
            for number in NUMBERS
        ]
        for rate in (0.0, 0.1)
    )
    assert max(plain) <= 1.05 * min(plain)
    assert max(dropping) <= 1.05 * min(dropping)
    assert max(dropping) <= 1.25 * min(plain)


def test_values_are_cast_once_in_an_optimizer_step(double: Any, mixed: Any) -> None:
    """Of 14 modules: all at once after a step, and not again before the next."""
    base, rows = double
    specs = specs_of(mixed, 3, **{"training.bf16": True})
    with Driven(base, rows, specs, 2) as driven:
        copies = []
        for _ in range(2):
            copies += [step(driven, specs).launches, step(driven, specs).launches]
            step_rows(driven.pack_rows)
        first, second, after, last = (found["copy_"] for found in copies)
        assert (first, second, after, last) == (1, 0, 1, 0)
        cast, values = driven.pack._cast, driven.pack.values_KP
        assert cast is not None
        step(driven, specs)
        assert torch.equal(cast, values.to(torch.bfloat16))


def test_rows_beyond_the_last_trial_are_not_cast(double: Any, mixed: Any) -> None:
    base, rows = double
    specs = specs_of(mixed, 3, **{"training.bf16": True})
    with Driven(base, rows, specs, 2) as driven:
        step(driven, specs)
        driven.pack.free(2)
        step_rows(driven.pack_rows[:2])
        cast, values = driven.pack._cast, driven.pack.values_KP
        assert cast is not None
        step(driven, specs[:2])
        assert torch.equal(cast[:2], values[:2].to(torch.bfloat16))
        assert not values[2].any()
        assert cast[2].any(), "of the trial that has left; nothing reads it"


def test_slots_that_are_due_step_together(double: Any, mixed: Any) -> None:
    """With one call of the optimizer for those of equal settings, whatever their number."""
    base, rows = double
    counts = []
    for number in (2, 8):
        specs = specs_of(mixed, number)
        with Driven(base, rows, specs, 2) as driven:
            step(driven, specs)
            with Operators() as operators:
                step_rows(driven.pack_rows)
        counts.append(operators.launches)
    assert counts[0] == counts[1]
    assert counts[0]["_fused_adamw_"] == 1
    assert counts[0].total() <= 10


def test_a_step_waits_for_nothing_but_the_mask_of_transformers(double: Any, mixed: Any) -> None:
    """Which looks for padding, before the forward has begun (twice where there is some); the losses
    are read by who asks for them."""
    base, rows = double
    specs = specs_of(mixed, 4, **{"adapter.lora_dropout": 0.1})
    with Driven(base, rows, specs, 2) as driven:
        found = step(driven, specs)
        with Operators() as optimizers:
            step_rows(driven.pack_rows)
    waits = Counter(found.waits)
    assert waits["_local_scalar_dense"] <= 2
    assert waits.total() == waits["_local_scalar_dense"] + waits["nonzero"]
    assert waits["nonzero"] == 1, "of the batch, on the CPU, before it is sent"
    assert max(found.at_waits) < found.first_product
    assert optimizers.waits == Counter()


@pytest.mark.parametrize("due", [(0, 1, 2, 3, 4), (0, 2, 3), (4,)])
def test_rows_that_step_together_are_as_each_alone(
    double: Any, mixed: Any, due: tuple[int, ...]
) -> None:
    """With settings of their own, side by side or not; the others are untouched."""
    base, rows = double
    states = []
    for together in (True, False):
        with Driven(base, rows, mixed(), 4) as driven:
            for _ in range(3):
                driven.step(range(5))
            if together:
                step_rows([driven.pack_rows[slot] for slot in due])
            else:
                for slot in due:
                    step_rows([driven.pack_rows[slot]])
            pack = driven.pack
            states.append([pack.values_KP, pack.gradients_KP, *pack.moments_KP])
    for one, other in zip(*states, strict=True):
        assert torch.equal(one, other)
