"""What both engines do on an accelerator, tried on a pretended one: `test_pretend_device.py` runs
this in a process of its own."""

import dataclasses
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from peft_jobs.device.slot_room import PLANNED_SHARE, SlotRoom
from peft_jobs.engines.packed.composition import Composition
from peft_jobs.engines.packed.packed_engine import PackedEngine
from peft_jobs.engines.packed.row import step_rows
from peft_jobs.engines.packed.slot_count import predicted_slots
from peft_jobs.engines.packed.step import Work, packed_step
from peft_jobs.engines.solo.solo_engine import SoloEngine
from peft_jobs.evaluation.scoring import evaluate
from peft_jobs.methods import METHODS
from peft_jobs.methods.method import checkpoint_activations
from peft_jobs.tasks import TASKS
from peft_jobs.training.training_state import restore_model, restore_optimizer, snapshot
from tests.peft_jobs.engines.packed.conftest import CLASSES
from tests.peft_jobs.engines.packed.test_rounds import Answered, Queue
from tests.support.packed_runs import Driven, furthest, plain_losses
from tests.support.pretend_device import DevicesDoNotMatch, OnPretendDevice, PretendDevice, move

CLOSE = 1e-5
NF4 = {"quantization.scheme": "nf4", "training.max_steps": 2}
SLOTS = (0, 2, 3)
"""No neighbours, with dropout and without."""


@pytest.fixture(scope="module")
def pretended() -> Iterator[PretendDevice]:
    with PretendDevice() as device:
        yield device


def moved(base: Any, pretended: PretendDevice) -> Any:
    move(base.model, pretended.device)
    assert all(isinstance(value, OnPretendDevice) for value in base.model.parameters())
    return dataclasses.replace(base, device=pretended.device)


@pytest.fixture(scope="module")
def base_and_rows(
    pretended: PretendDevice, cache: str, trial: Any, common: dict[str, Any]
) -> tuple[Any, Any]:
    """The tiny Llama in NF4, on the device, and its training rows."""
    base, data = SoloEngine(cache, threads=1).check(trial(common | NF4))
    return moved(base, pretended), data.train


def forward_and_backward(driven: Driven, slots: Sequence[int] = SLOTS) -> torch.Tensor:
    works = [Work(slot, driven.specs[slot], driven.feeds[slot].take(1)) for slot in slots]
    return packed_step(
        driven.pack,
        driven.base.model,
        TASKS[driven.specs[0].task.type],
        works,
        pad_token_id=driven.base.tokenizer.pad_token_id,
        device=driven.base.device,
        training=driven.specs[0].training,
    )


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_nobody_waits_between_forward_and_backward(
    pretended: PretendDevice, base_and_rows: Any, mixed: Any, bf16: bool, checkpointing: bool
) -> None:
    """Before it, all that the step takes is sent. Of padding transformers is told; where there is
    none it looks. Reading the losses is the step's other wait."""
    with Driven(*base_and_rows, mixed(**NF4, **{"training.bf16": bf16}), 2) as driven:
        if checkpointing:
            checkpoint_activations(driven.base.model)
        pretended.begin()
        losses = forward_and_backward(driven)
        assert isinstance(losses, OnPretendDevice), "who reads them waits, after the backward"
        assert len(pretended.products) > 50
        assert len(pretended.waits) <= 1
        assert all(at < pretended.products[0] for _, at in pretended.waits + pretended.sent)
        pretended.begin()
        step_rows([driven.pack_rows[slot] for slot in SLOTS])
        assert pretended.launches["_fused_adamw_"] >= 1
        assert pretended.waits == pretended.sent == []


def test_a_base_that_drops_itself_waits_for_nobody_either(
    pretended: PretendDevice, cache: str, mixed: Any, tiny_bert_path: Path
) -> None:
    own = {"model.name_or_path": str(tiny_bert_path), "task": CLASSES}
    specs = mixed(**own, **{"adapter.target_modules": "attention"})
    base, data = SoloEngine(cache, threads=1).check(specs[0])
    assert base.model.config.attention_probs_dropout_prob > 0
    with Driven(base, data.train, specs, 2) as driven:
        expected = forward_and_backward(driven)
        gradients = driven.pack.gradients_KP.clone()
    with Driven(moved(base, pretended), data.train, specs, 2) as driven:
        checkpoint_activations(driven.base.model, driven.pack.again)
        pretended.begin()
        found = forward_and_backward(driven)
        assert len(pretended.waits) <= 1
        assert all(at < pretended.products[0] for _, at in pretended.waits)
        assert found.tolist() == pytest.approx(expected.tolist(), rel=CLOSE)
        assert torch.allclose(driven.pack.gradients_KP.to("cpu"), gradients, atol=CLOSE)


@pytest.mark.parametrize("bf16", [False, True])
def test_other_forms_wait_for_nobody_either(
    pretended: PretendDevice, cache: str, formed: Any, bf16: bool
) -> None:
    names = ("dora", "dora orthogonal", "ia3", "vera of its own", "miss", "lora")
    specs = formed(*names, **NF4, **{"training.bf16": bf16})
    slots = [0, 2, *range(3, len(specs))]
    base, data = SoloEngine(cache, threads=1).check(specs[0])
    with Driven(base, data.train, specs, 2) as driven:
        expected = forward_and_backward(driven, slots)
        gradients = driven.pack.gradients_KP.clone()
    with Driven(moved(base, pretended), data.train, specs, 2) as driven:
        pretended.begin()
        found = forward_and_backward(driven, slots)
        assert len(pretended.waits) <= 2
        assert all(at < pretended.products[0] for _, at in pretended.waits + pretended.sent)
        # A CPU's own kernels for bfloat16 round otherwise than those that are put together.
        close = 2e-3 if bf16 else CLOSE
        assert found.tolist() == pytest.approx(expected.tolist(), rel=close)
        if not bf16:
            assert torch.allclose(driven.pack.gradients_KP.to("cpu"), gradients, atol=CLOSE)


def test_the_losses_of_a_plain_loop_are_those_of_a_cpu(
    base_and_rows: Any, cache: str, mixed: Any
) -> None:
    spec = mixed(**NF4)[4]
    on_cpu, data = SoloEngine(cache, threads=1).check(spec)
    expected = plain_losses(on_cpu, data.train, spec, 2)
    assert plain_losses(*base_and_rows, spec, 2) == pytest.approx(expected, rel=CLOSE)


def test_trials_alone_go_on_from_their_snapshots(
    pretended: PretendDevice, base_and_rows: Any, mixed: Any, take_steps: Any
) -> None:
    base, rows = base_and_rows
    spec, method = mixed(**NF4)[2], METHODS["lora"]
    model = method.attach(base, spec)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(isinstance(parameter, OnPretendDevice) for parameter in trained)
    pretended.begin()
    take_steps(model, 1)
    scored = evaluate(
        model,
        TASKS["causal_lm"],
        rows,
        batch_size=16,
        pad_token_id=base.tokenizer.pad_token_id,
        device=base.device,
    )
    assert scored["validation/loss"] > 0
    optimizer = torch.optim.AdamW(trained)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    for parameter in trained:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    kept = snapshot(model, optimizer).read()
    assert all(not isinstance(tensor, OnPretendDevice) for tensor in kept.values())
    method.detach(model)
    model = method.attach(base, spec)
    restore_model(model, kept)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    again = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    restore_optimizer(model, optimizer, again, kept, schedule.state_dict())
    found = snapshot(model, optimizer).read()
    method.detach(model)
    assert found.keys() == kept.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in kept.items())


def trained(
    engine: PackedEngine, specs: Sequence[Any], folder: Path, starts: Sequence[Path | None]
) -> list[Answered]:
    """All specs through the engine, in this thread."""
    changed = threading.Condition()
    jobs = [
        Answered(trial, 1, spec, folder / str(trial), start, changed)
        for trial, (spec, start) in enumerate(zip(specs, starts, strict=True))
    ]
    engine.serve(Queue(jobs))
    return jobs


def move_engine(engine: PackedEngine, pretended: PretendDevice) -> None:
    """Have an engine's resident base, and all that it does from now on, on the device."""
    resident = engine.solo._resident
    resident.base = moved(resident.base, pretended)
    resident.device = engine.solo.device = pretended.device
    resident._hash = resident.base.state_hash()


class Watched(Composition):
    """Remembers of how many trials its packs were."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def compose(self, trials: Sequence[Any], most: int = 0) -> None:
        self.sizes.append(len(trials))
        super().compose(trials, most)


def test_a_pack_begins_with_the_slots_that_are_predicted_to_fit(
    pretended: PretendDevice, cache: str, mixed: Any, tmp_path: Path
) -> None:
    """Memory for two and a half: the first pack has two, then what its steps took says how many.
    The losses are those of a device that is never full."""
    specs = [mixed(**NF4)[2].with_params({"seed": seed}) for seed in range(4)]
    on_cpu = PackedEngine(cache, num_slots=4, threads=1)
    on_cpu.solo.check(specs[0])
    expected = trained(on_cpu, specs, tmp_path / "cpu", [None] * 4)
    engine, composition = PackedEngine(cache, num_slots=4, threads=1), Watched()
    engine.assemble(engine.solo, composition)
    engine.solo.check(specs[0])
    move_engine(engine, pretended)
    memory, resident = pretended.memory, pretended.memory.allocated
    prepared = engine.prepare(specs[0], [])
    assert prepared.device is not None
    assert prepared.lengths is not None
    told = predicted_slots(specs[0], prepared.device, prepared.lengths)
    assert told is not None
    shared, each = SlotRoom(resident, told.beside).parts()
    before = memory.total
    try:
        memory.total = int((resident + shared + 2.5 * (each + told.state_bytes)) / PLANNED_SHARE)
        jobs = trained(engine, specs, tmp_path / "pretended", [None] * 4)
    finally:
        memory.total = before
    assert composition.sizes[:2] == [2, 4]
    assert memory.times_full == 0
    for one, job in zip(expected, jobs, strict=True):
        assert job.result is not None
        assert job.result.error is None, job.result.traceback
        assert furthest(one.heard, job.heard) < CLOSE


def test_trials_come_and_go_in_a_pack_as_on_a_cpu(
    pretended: PretendDevice, cache: str, mixed: Any, tmp_path: Path
) -> None:
    """Three in two slots, which leaves one and fills it, and makes the pack anew for a higher rank;
    with checkpoints, evaluations together and apart, and adapters; then on from a checkpoint."""
    specs = [mixed(**NF4, **{"evaluation.rungs": [4]})[number] for number in (1, 0, 4)]
    found = []
    for place in ("cpu", "pretended"):
        engine = PackedEngine(cache, num_slots=2, threads=1, checkpoint_seconds=0)
        engine.solo.check(specs[0])
        if place == "pretended":
            move_engine(engine, pretended)
        jobs = trained(engine, specs, tmp_path / place, [None] * 3)
        middle = [next(Path(p.checkpoint) for p in job.heard if p.checkpoint) for job in jobs]
        found.append((jobs, trained(engine, specs, tmp_path / f"{place} again", middle)))
        assert engine.solo.base is not None, "it is what it was"
    for jobs, expected in zip(found[1], found[0], strict=True):
        for one, other in zip(expected, jobs, strict=True):
            assert other.result is not None
            assert other.result.error is None, other.result.traceback
            assert other.result.provenance["engine"] == "packed"
            assert furthest(one.heard, other.heard) < CLOSE
            assert [p.checkpoint is None for p in other.heard] == [
                p.checkpoint is None for p in one.heard
            ]


def test_a_tensor_that_was_forgotten_on_the_host_fails_the_step(
    base_and_rows: Any, mixed: Any
) -> None:
    with Driven(*base_and_rows, mixed(**NF4), 2) as driven:
        driven.pack.scales_MK = driven.pack.scales_MK.to("cpu")
        with pytest.raises((DevicesDoNotMatch, RuntimeError), match="pretend"):
            forward_and_backward(driven, (0, 1))


def test_a_look_at_a_value_in_the_forward_is_seen(
    pretended: PretendDevice, base_and_rows: Any, mixed: Any
) -> None:
    with Driven(*base_and_rows, mixed(**NF4), 2) as driven:
        layer = driven.base.model.get_submodule("model.layers.1")
        hook = layer.register_forward_hook(lambda _layer, _args, found: found * found.amax().item())
        pretended.begin()
        forward_and_backward(driven)
        hook.remove()
    assert any(at > pretended.products[0] for _, at in pretended.waits)
