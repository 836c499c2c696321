"""What slots have, on its way between packs and out of them: memory may be short at any time."""

import gc
import threading
import weakref
from collections import Counter
from collections.abc import Hashable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from peft_jobs.device.slot_room import SlotRoom
from peft_jobs.engines.packed.calibration import Calibration
from peft_jobs.engines.packed.composition import Composition
from peft_jobs.engines.packed.layout import make_layout
from peft_jobs.engines.packed.packed_engine import PackedEngine
from peft_jobs.engines.packed.packed_trial import PackedTrial
from peft_jobs.engines.packed.parts import parts_of
from peft_jobs.engines.packed.queue import Waiting, WaitingLine
from peft_jobs.engines.packed.row import Captured
from peft_jobs.engines.solo.solo_engine import SoloEngine
from peft_jobs.host.job import Job
from peft_jobs.training.attempt import AttemptOptions, ResultDraft
from tests.peft_jobs.engines.packed.conftest import CLASSES
from tests.peft_jobs.engines.packed.test_engine import PETABYTE, adapters, check_same, engines_of
from tests.peft_jobs.engines.packed.test_rounds import Answered, Queue, Small
from tests.support.packed_runs import run_all

LAYERS = 2
ATTENTION = 4 * 64 + 64 + 32 + 32 + 64
"""Inputs and outputs of q_proj, k_proj, v_proj and o_proj of the tiny Llama."""
DOWN = 128 + 64


class Copies(TorchDispatchMode):
    """Counts copies of what is in a pack's rows, and refuses some as a device without memory does.

    Copies for the CPU are another operator.
    """

    def __init__(self, state: int, refused: str = "") -> None:
        """Packs whose rows have `state` parameters together count; `refused` names operators."""
        super().__init__()
        self.num_bytes, self.refused, self.count = 4 * state, refused.split(), 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        is_copy = name in ("clone", "_to_copy")
        if is_copy and args[0].untyped_storage().nbytes() == self.num_bytes:
            self.count += 1
            if name in self.refused:
                raise torch.OutOfMemoryError("no memory for a copy")
        return func(*args, **(kwargs or {}))


def jobs_of(specs: list[Any], folder: Path) -> list[Answered]:
    return [
        Answered(number, 1, spec, folder / str(number) / "attempts" / "1", None, condition)
        for condition in [threading.Condition()]
        for number, spec in enumerate(specs)
    ]


class AllTogether(Calibration):
    """All slots share each step, however long one takes: two runs have the same shapes."""

    def width(self, work: Hashable, num_slots: int) -> int:
        return num_slots

    def saw(self, work: Hashable, width: int, seconds: float, num_tokens: int) -> None:
        pass


def engine_without_clock(cache: str, num_slots: int) -> PackedEngine:
    """An engine whose steps and evaluations have shapes that do not hang on how fast it is."""
    engine = PackedEngine(cache, num_slots=num_slots, threads=1)
    engine.rounds.calibration = AllTogether()
    engine.rounds.evaluations._calibration = AllTogether()
    return engine


def found_by(jobs: list[Answered]) -> tuple[Any, Any]:
    return {job.trial: job.heard for job in jobs}, {job.trial: job.result for job in jobs}


def test_slots_move_where_memory_has_no_room_for_a_copy(
    cache: str, mixed: Any, tmp_path: Path
) -> None:
    base = mixed(**{"training.gradient_accumulation_steps": 1})
    specs = [
        base[3].with_params({"seed": seed, "training.max_steps": steps})
        for seed, steps in enumerate((4, 6, 9, 5, 4))
    ]
    specs[3] = specs[3].with_params({"adapter.r": 16})  # for which the others must move
    whole = engine_without_clock(cache, num_slots=3)
    unbroken = jobs_of(specs, tmp_path / "unbroken")
    whole.serve(Queue(unbroken))
    engine = engine_without_clock(cache, num_slots=3)
    engine.solo.check(specs[0])
    jobs = jobs_of(specs, tmp_path / "full")
    with Copies(3 * 8 * LAYERS * ATTENTION, refused="clone") as device:
        engine.serve(Queue(jobs))
        assert device.count > 0
        later = jobs_of(specs[:1], tmp_path / "later")
        engine.serve(Queue(later))
    check_same(found_by(unbroken), found_by(jobs), close=1e-12)  # the same shapes throughout
    for trial in range(len(specs)):
        one, other = (adapters(tmp_path / name, trial)[0] for name in ("unbroken", "full"))
        assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    # One slot's steps have other shapes than those of three.
    check_same(({0: unbroken[0].heard}, {0: unbroken[0].result}), found_by(later))
    assert engines_of(found_by(jobs)) == ["packed"] * 5
    assert engine.status()["slots"] == []


def test_a_trial_that_has_ended_is_not_kept(cache: str, mixed: Any, tmp_path: Path) -> None:
    spec = mixed(**{"training.max_steps": 3})[3]
    engine = PackedEngine(cache, num_slots=1, threads=1)
    engine.solo.check(spec)
    jobs = jobs_of([spec], tmp_path)
    with Copies(8 * LAYERS * ATTENTION) as device:
        engine.serve(Queue(jobs))
    saved = adapters(tmp_path, 0)[0]
    assert len(saved) == 2 * 4 * 2, "four modules of two layers"
    assert device.count == 1, "the adapter's own copy of the row"


class Failing(Queue):
    """An inbox that fails once one of its jobs has told something."""

    def __init__(self, jobs: list[Answered]) -> None:
        super().__init__(jobs)
        self.all = list(jobs)

    def take(self, block: bool = True) -> Job | None:
        if any(hasattr(job, "heard") for job in self.all):
            raise ConnectionError("the inbox is gone")
        return super().take(block)


def test_an_engine_that_fails_lets_go_of_its_trials_and_can_serve_again(
    cache: str, mixed: Any, tmp_path: Path
) -> None:
    specs = mixed(**{"training.max_steps": 3})[3:]
    engine = PackedEngine(cache, num_slots=3, threads=1)
    base, _ = engine.solo.check(specs[0])
    before = base.state_hash()
    broken = jobs_of(specs, tmp_path / "broken")
    state = 2 * 16 * LAYERS * (ATTENTION + DOWN)
    with Copies(state, refused="clone _to_copy") as device:
        with pytest.raises(ConnectionError):
            engine.serve(Failing(broken))
        assert device.count == 0
    assert [job.result for job in broken] == [None, None]
    assert engine.status()["slots"] == []
    assert base.state_hash() == before
    expected = run_all(SoloEngine(cache, threads=1), specs, tmp_path / "solo")
    jobs = jobs_of(specs, tmp_path / "again")
    engine.serve(Queue(jobs))
    check_same(expected, found_by(jobs))


class Full(Small):
    """A device that has no memory for the first pack, and then enough."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.refused:
            self.most = 1000
        return super().__torch_dispatch__(func, types, args, kwargs)


def test_what_slots_have_makes_room_for_their_pack(cache: str, mixed: Any, tmp_path: Path) -> None:
    specs = [mixed(**{"training.max_steps": 3})[4].with_params({"seed": s}) for s in range(3)]
    engine = PackedEngine(cache, num_slots=3, threads=1)
    engine.solo.check(specs[0])
    jobs = jobs_of(specs, tmp_path)
    with Full(16 * LAYERS * (64 + 64 + DOWN), 2) as device:
        engine.serve(Queue(jobs))
    assert device.refused == 1
    assert [job.result.provenance["slots"] for job in jobs if job.result] == [3, 3, 3]


def slot_of(engine: SoloEngine, spec: Any, folder: Path) -> PackedTrial:
    base, data = engine.check(spec)
    job = Job(0, 1, spec, folder, None, threading.Condition())
    parts = parts_of(spec, base.model)
    return PackedTrial(job, base, data, parts, ResultDraft(), AttemptOptions())


def test_who_waits_takes_no_memory_of_a_gpu(cache: str, mixed: Any, tmp_path: Path) -> None:
    slot = slot_of(SoloEngine(cache, threads=1), mixed()[0], tmp_path)
    with FakeTensorMode():  # devices as they would be, without what is on them
        named = {place: torch.empty(shape, device="cuda") for place, shape in slot.shapes.items()}
        slot.captured = Captured(named, named, {"exp_avg": named, "exp_avg_sq": named}, 3)
        line = WaitingLine()
        line.put_back(Waiting(slot.job, slot))
        waiting = line.next()
    assert waiting is not None
    assert waiting.trial is slot
    held = slot.captured
    assert held.steps == 3
    for kept in (held.values, held.gradients, *held.moments.values()):
        assert {place: tensor.shape for place, tensor in kept.items()} == slot.shapes
        assert {tensor.device.type for tensor in kept.values()} == {"cpu"}


def test_nothing_is_kept_of_a_trial_that_has_gone_to_the_solo_engine(
    cache: str, mixed: Any, tmp_path: Path
) -> None:
    large = mixed(**{"training.max_steps": 6})[0].with_params(
        {"training.per_device_train_batch_size": 8}
    )
    other = mixed(**{"training.max_steps": 3, "quantization.scheme": "nf4"})[1]
    engine = PackedEngine(cache, num_slots=2, threads=1)
    base, _ = engine.solo.check(large)
    kept: list[int] = []
    passes: list[int] = []

    def look(module: Any, _inputs: Any, arguments: dict[str, Any]) -> None:
        rows = len(arguments["input_ids"])
        if module.training and rows > 4:
            passes.append(rows)
            if len(passes) > 3:
                torch.empty(PETABYTE)
        elif module.training:
            kept.append(sum(isinstance(thing, Captured) for thing in gc.get_objects()))

    base.model.register_forward_pre_hook(look, with_kwargs=True)
    old = weakref.ref(base.model)
    del base
    gone: list[bool] = []

    def heard(host: Any, trial: int, report: Any) -> None:
        if trial == 1:
            gone.append(old() is None)

    found = run_all(engine, [large, other], tmp_path, heard)
    assert engines_of(found) == ["solo", "packed"]
    assert kept
    assert set(kept) == {0}
    assert gone
    assert all(gone)


def test_a_row_has_room_for_all_modules_at_the_highest_rank(
    cache: str, mixed: Any, tmp_path: Path
) -> None:
    engine = SoloEngine(cache, threads=1)
    for name, params in (("text", {}), ("classes", {"task": CLASSES})):
        slots = [slot_of(engine, spec, tmp_path / name) for spec in mixed(**params)]
        for some in (slots[:1], slots[:2], slots[3:], slots):
            adapted = {name for slot in some for name in slot.parts.adapted}
            whole = {name for slot in some for name in slot.parts.whole}
            rank = max(slot.spec.adapter.r for slot in some)
            model = some[0].base.model
            expected = sum(p.numel() for n in whole for p in model.get_submodule(n).parameters())
            for module in map(model.get_submodule, adapted):
                expected += max(rank, 8) * (module.in_features + module.out_features)
            assert make_layout(slot.shapes for slot in some).size == expected


class Moved(TorchDispatchMode):
    """What a change of trials asks of the device: operators, and bytes they write or make."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: Counter[str] = Counter()
        self.written, self.made = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.operators[name] += 1
        if isinstance(found, torch.Tensor):
            if name.endswith("_"):
                self.written += found.nbytes
            elif not func.is_view:
                self.made += found.nbytes
        return found


@pytest.mark.parametrize("rank", [4, 8])
def test_a_change_of_trials_costs_the_same_whatever_the_number_of_the_others(
    cache: str, mixed: Any, tmp_path: Path, rank: int
) -> None:
    engine = SoloEngine(cache, threads=1)
    costs = []
    for number in (2, 4, 8):
        spec = mixed()[3]
        folder = tmp_path / str(number)
        slots = [slot_of(engine, spec.with_params({"seed": s}), folder) for s in range(number)]
        composition = Composition()
        composition.compose(slots, 8)
        pack, row_bytes = composition.pack, 4 * composition.pack.layout.size
        pack.values_KP += 1.0
        pack.gradients_KP += 1.0
        others = pack.values_KP[[0, *range(2, number)]].clone()
        with Moved() as left:
            composition.keep([slots[0], *slots[2:]])
        assert pack.free_slots[0] == 1
        freed = (pack.values_KP, pack.gradients_KP, *pack.moments_KP, pack.counts_K3)
        assert not any(state[1].any() for state in freed)
        assert not pack.scales_MK[:, 1].any()
        assert pack.max_norms_K[1] == 0
        with composition.bare():
            newcomer = slot_of(engine, spec.with_params({"adapter.r": rank}), folder)
        with Moved() as came:
            composition.compose([*composition.trials, newcomer], 8)
        assert composition.pack is pack, "it stays"
        assert newcomer.row is not None
        assert newcomer.row.slot == 1
        assert torch.equal(pack.values_KP[[0, *range(2, number)]], others)
        for moved, rows in ((left, 4), (came, 4 + 1)):  # zeros in four rows; then its own values
            assert moved.written <= rows * row_bytes + 100
            assert moved.made == 0
        costs.append([(moved.operators, moved.written) for moved in (left, came)])
        composition.clear()
    assert costs == [costs[0]] * 3


def test_trials_come_and_go_without_a_copy_of_another(
    cache: str, mixed: Any, tmp_path: Path
) -> None:
    """Seven trials of a search in three slots: after the first, none is moved; each copies its own
    row once, for its adapter."""
    spec = mixed(**{"training.gradient_accumulation_steps": 1})[3]
    steps, ranks = (4, 6, 9, 5, 4, 3, 7), (8, 4, 8, 2, 8, 8, 4)
    specs = [
        spec.with_params({"seed": seed, "training.max_steps": n, "adapter.r": r})
        for seed, (n, r) in enumerate(zip(steps, ranks, strict=True))
    ]
    expected = run_all(SoloEngine(cache, threads=1), specs, tmp_path / "solo")
    engine = engine_without_clock(cache, num_slots=3)
    engine.solo.check(specs[0])
    jobs = jobs_of(specs, tmp_path / "packed")
    with Copies(3 * 8 * LAYERS * ATTENTION, refused="clone") as device:
        engine.serve(Queue(jobs))
    assert device.count == 7
    check_same(expected, found_by(jobs))
    assert engines_of(found_by(jobs)) == ["packed"] * 7


def test_a_pack_grows_by_doubling(cache: str, mixed: Any, tmp_path: Path) -> None:
    engine = SoloEngine(cache, threads=1)
    slots = [slot_of(engine, mixed()[3], tmp_path) for _ in range(6)]
    composition, packs = Composition(), []
    for number in range(1, 7):
        composition.compose(slots[:number], most=6)
        packs.append(composition.pack)
    composition.clear()
    assert [len(pack.values_KP) for pack in packs] == [1, 2, 4, 4, 6, 6]
    assert packs[2] is packs[3]
    assert packs[4] is packs[5]


def test_what_was_learned_of_a_base_is_forgotten_with_it() -> None:
    composition = Composition()
    base: Any = SimpleNamespace(model=torch.nn.Linear(1, 1), device=torch.device("cpu"))
    composition._rooms[base.model] = room = SlotRoom(0)
    assert composition._room(base) is room
    base.model = torch.nn.Linear(1, 1)  # the same one, loaded again
    gc.collect()
    assert len(composition._rooms) == 0


class Narrow(Composition):
    """On a device with memory for so many parameters of slots, and for steps of any number."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most
        self.seen: list[tuple[int, ...]] = []

    def room(self, slots: Sequence[PackedTrial]) -> int:
        return max(1, self.most // make_layout(slot.shapes for slot in slots).size)

    def compose(self, slots: Sequence[PackedTrial], most: int = 0) -> None:
        super().compose(slots, most)
        if slots:
            self.seen.append(tuple(slot.job.trial for slot in slots))
            assert len(slots) == 1 or self.pack.values_KP.numel() <= self.most


@pytest.mark.parametrize("rank", [32, 128])
def test_a_newcomer_waits_until_the_pack_with_its_rank_fits(
    cache: str, mixed: Any, tmp_path: Path, rank: int
) -> None:
    small = mixed()[3].with_params({"adapter.lora_dropout": 0.1})
    steps = (4, 8, 6, 9, 3, 3, 3)
    specs = [small.with_params({"seed": s, "training.max_steps": n}) for s, n in enumerate(steps)]
    specs[4] = specs[4].with_params({"adapter.r": rank})
    expected = run_all(SoloEngine(cache, threads=1), specs, tmp_path / "solo")
    engine = PackedEngine(cache, num_slots=5, threads=1)
    narrow = Narrow(10 * 8 * LAYERS * ATTENTION)
    engine.assemble(engine.solo, narrow)
    check_same(expected, found := run_all(engine, specs, tmp_path / "packed"))
    assert engines_of(found) == ["packed"] * 7
    assert narrow.seen[0] == (0, 1, 2, 3)
    with_it = [trials for trials in narrow.seen if 4 in trials]
    assert {len(trials) for trials in with_it} == ({1} if rank == 128 else {2})
    before = narrow.seen[: narrow.seen.index(with_it[0])]
    assert not any({5, 6} & set(trials) for trials in before), "nobody overtakes"
    after = narrow.seen[narrow.seen.index(with_it[-1]) + 1 :]
    assert max(len(trials) for trials in after) == 2
