"""What a packed step asks of a device: launches and waits, by the number of slots."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import transformers

from peft_jobs.engines.packed.row import step_rows
from peft_jobs.engines.packed.step import Work, packed_step
from peft_jobs.engines.solo.solo_engine import SoloEngine
from peft_jobs.tasks import TASKS
from tests.peft_jobs.conftest import save_tokenizer
from tests.peft_jobs.engines.packed.conftest import CAUSAL, CLASSES
from tests.peft_jobs.engines.packed.test_architectures import RATES, SIZES
from tests.support.operators import Operators
from tests.support.packed_runs import Driven

NUMBERS = (1, 2, 4, 8, 16, 32)


def specs_of(mixed: Any, number: int, **params: Any) -> list[Any]:
    spec = mixed(**params)[0]
    return [spec.with_params({"seed": seed}) for seed in range(number)]


def step(driven: Driven, specs: Sequence[Any], num_rows: int = 4) -> Operators:
    """The forward and the backward of a packed step."""
    works = [Work(n, spec, driven.feeds[n].take(num_rows)) for n, spec in enumerate(specs)]
    return of_step(driven, specs, works)


def of_step(driven: Driven, specs: Sequence[Any], works: Sequence[Work]) -> Operators:
    with Operators() as operators:
        packed_step(
            driven.pack,
            driven.base.model,
            TASKS[specs[0].task.type],
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


@pytest.fixture(scope="module", params=["Bert", "GPT2"])
def dropping(request: Any, trial: Any, common: Any, cache: str, tmp_path_factory: Any) -> Any:
    """(rate, layers) -> (trial, base, rows) of an architecture whose base drops so much."""

    def build(rate: float, num_layers: int) -> tuple[Any, Any, Any]:
        is_encoder = request.param == "Bert"
        sizes = SIZES | dict.fromkeys(RATES, rate)
        sizes |= {"num_hidden_layers": num_layers, "n_layer": num_layers}
        config = getattr(transformers, f"{request.param}Config")(**sizes)
        auto = transformers.AutoModel if is_encoder else transformers.AutoModelForCausalLM
        folder = tmp_path_factory.mktemp(request.param)
        auto.from_config(config).save_pretrained(folder)
        save_tokenizer(folder, bert=is_encoder)
        task = CLASSES if is_encoder else CAUSAL
        spec = trial({**common, "model.name_or_path": str(folder), "task": task})
        spec = spec.with_params({"adapter.target_modules": "all-linear"})
        base, data = SoloEngine(cache, threads=1).check(spec)
        return spec, base, data.train

    return build


def of_one_length(rows: Any) -> Any:
    """The longest rows, again and again."""
    lengths = [len(row["input_ids"]) for row in rows]
    return rows.select([n for n, length in enumerate(lengths) if length == max(lengths)] * 8)


def second_step(base: Any, rows: Any, spec: Any, number: int) -> int:
    """Launches of the step in which the sites that drop are known."""
    specs = [spec.with_params({"seed": seed}) for seed in range(number)]
    with Driven(base, rows, specs, 2) as driven:
        step(driven, specs, 1)
        return step(driven, specs, 1).launches.total()


def test_launches_of_a_base_that_drops_depend_on_no_number_of_slots(dropping: Any) -> None:
    """For each layer, a quarter of the draws of its three sites, a product each way for each of
    them, and attention in single operators, whose probabilities are at hand."""
    counts: dict[tuple[float, int], list[int]] = {}
    for rate, num_layers in ((0.0, 2), (0.0, 10), (0.2, 2), (0.2, 10)):
        spec, base, rows = dropping(rate, num_layers)
        numbers = (1, 2, 8, 32) if (rate, num_layers) == (0.2, 2) else (4,)
        counts[rate, num_layers] = [
            second_step(base, of_one_length(rows), spec, number) for number in numbers
        ]
    assert max(counts[0.2, 2]) <= 1.05 * min(counts[0.2, 2])
    plain, dropped = ((counts[r, 10][0] - min(counts[r, 2])) / 8 for r in (0.0, 0.2))
    assert dropped <= 1.45 * plain


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


@pytest.mark.parametrize("is_padded", [False, True])
def test_a_step_waits_twice_at_most_and_not_between_forward_and_backward(
    double: Any, mixed: Any, is_padded: bool
) -> None:
    """For transformers, which looks for padding where it is not told of some, before the forward
    has begun; and for the losses, which who asks for them reads."""
    base, rows = double
    rows = rows if is_padded else of_one_length(rows)
    specs = specs_of(mixed, 4, **{"adapter.lora_dropout": 0.1})
    with Driven(base, rows, specs, 2) as driven:
        works = [Work(n, spec, driven.feeds[n].take(4)) for n, spec in enumerate(specs)]
        found_lengths = {len(e["input_ids"]) for work in works for e in work.chunk.examples}
        assert (len(found_lengths) > 1) == is_padded
        found = of_step(driven, specs, works)
        with Operators() as optimizers:
            step_rows(driven.pack_rows)
    waits = Counter(found.waits)
    on_host = {"nonzero": 1, "_local_scalar_dense": 1}  # of the batch, before it is sent
    waits.subtract(on_host)
    assert waits["_local_scalar_dense"] == (0 if is_padded else 1)
    assert waits.total() + len(["losses"]) <= 2
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
