"""What goes wrong in a step, or in making a pack, is the business of as few trials as can be."""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from peft_jobs.engines.packed.packed_engine import PackedEngine
from peft_jobs.engines.solo.solo_engine import SoloEngine
from peft_jobs.host.job import Job
from peft_jobs.randomness import epoch_order
from tests.peft_jobs.engines.packed.test_engine import check_same, engines_of
from tests.support.packed_runs import run_all


@contextmanager
def refusing(base: Any, tokens: list[int]) -> Iterator[list[int]]:
    """A base that fails to train on a row that begins with `tokens`; gives the rows of each batch
    that it refused."""
    refused: list[int] = []
    active = True

    def look(module: Any, _inputs: Any, arguments: dict[str, Any]) -> None:
        rows = arguments["input_ids"][:, : len(tokens)].tolist()
        if active and module.training and tokens in rows:
            refused.append(len(rows))
            raise ArithmeticError("a kernel that this row breaks")

    base.model.register_forward_pre_hook(look, with_kwargs=True)
    try:
        yield refused
    finally:
        active = False


def test_an_error_in_a_step_ends_the_trial_whose_row_it_is(
    cache: str, mixed: Any, tmp_path: Path
) -> None:
    specs = [
        spec.with_params(
            {
                "training.max_steps": 3,
                "training.per_device_train_batch_size": 2,
                "training.gradient_accumulation_steps": 2,
            }
        )
        for spec in mixed()
    ]
    base, data = SoloEngine(cache, threads=1).check(specs[0])
    orders = [epoch_order(spec.seed, 0, len(data.train))[:12].tolist() for spec in specs]
    elsewhere = {row for order in (*orders[:1], *orders[2:]) for row in order}
    row = next(row for row in orders[1][6:] if row not in elsewhere)  # in its second step
    expected = run_all(SoloEngine(cache, threads=1), specs, tmp_path / "solo")
    engine = PackedEngine(cache, num_slots=5, threads=1)
    base, _ = engine.solo.check(specs[0])
    with refusing(base, data.train[row]["input_ids"]) as refused:
        found = run_all(engine, specs, tmp_path / "packed")
    end = found[1].pop(1)
    assert (end.state, end.kind, end.step) == ("FAIL", "bug", 1)
    assert end.error == "a kernel that this row breaks"
    assert "in look" in end.traceback
    assert len(refused) == 2, "in the pack's step, and in its own"
    assert refused[0] > refused[1] == 2
    reports = found[0].pop(1)
    assert [report.step for report in reports] == [1]
    for part in expected:
        del part[1]
    check_same(expected, found)
    assert engines_of(found) == ["packed"] * 4
    assert engine.num_slots == 5


class Small(TorchDispatchMode):
    """A device without memory for more than so many rows of a pack."""

    def __init__(self, row: int, most: int) -> None:
        super().__init__()
        self.row, self.most, self.refused = row, most, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        is_state = isinstance(found, torch.Tensor) and found.shape[1:] == (self.row,)
        if is_state and len(found) > self.most:
            self.refused += 1
            raise torch.OutOfMemoryError(f"{len(found)} rows are too many")
        return found


class Answered(Job):
    """A job whose reports are answered at once."""

    def report(self, progress: Any) -> None:
        self.heard: list[Any] = [*getattr(self, "heard", []), progress]


class Queue:
    """An inbox that holds all jobs from the start."""

    def __init__(self, jobs: list[Answered]) -> None:
        self.jobs = deque(jobs)

    def take(self, block: bool = True) -> Job | None:
        return self.jobs.popleft() if self.jobs else None


@pytest.mark.parametrize("fitting", [3, 0])
def test_a_pack_that_does_not_fit_is_made_smaller(
    cache: str, mixed: Any, tmp_path: Path, fitting: int
) -> None:
    specs = [mixed(**{"training.max_steps": 5})[4].with_params({"seed": s}) for s in range(5)]
    expected = run_all(SoloEngine(cache, threads=1), specs, tmp_path / "solo")
    engine = PackedEngine(cache, num_slots=5, threads=1)
    engine.solo.check(specs[0])
    # q_proj and down_proj of two layers, at rank 16.
    row = 2 * 16 * ((64 + 64) + (128 + 64))
    jobs = [
        Answered(n, 1, spec, tmp_path / "packed" / str(n), None, threading.Condition())
        for n, spec in enumerate(specs)
    ]
    with Small(row, fitting) as device:
        engine.serve(Queue(jobs))
    packs = 2 if fitting else 5 + 4  # the first one; then each trial on its own
    assert device.refused == 2 * packs, "each is tried with nothing else in the device's memory"
    found = ({job.trial: job.heard for job in jobs}, {job.trial: job.result for job in jobs})
    check_same(expected, found)
    widths = [end.provenance["slots"] for end in found[1].values() if fitting]
    assert max(widths, default=0) == fitting
    assert engine.num_slots == (5 if fitting else 1), "after those who fitted there is room again"


def test_activations_are_computed_again_in_steps_with_a_trial_that_asks(
    cache: str, mixed: Any, tmp_path: Path
) -> None:
    """Where a step is of some of the trials, those who ask for it share one."""
    specs = [
        mixed(**{"training.max_steps": 8})[4].with_params(
            {"seed": seed, "training.gradient_checkpointing": seed % 2 == 1}
        )
        for seed in range(4)
    ]
    engine = PackedEngine(cache, num_slots=4, threads=1)
    base, _ = engine.solo.check(specs[0])
    rows_of_calls: list[int] = []
    steps: list[tuple[int, int]] = []
    """Rows and forwards of the first layer's attention, in each step."""

    def begun(module: Any, _inputs: Any, _arguments: Any) -> None:
        if module.training:
            if rows_of_calls:
                steps.append((rows_of_calls[0], len(rows_of_calls)))
            rows_of_calls.clear()

    def called(module: Any, _inputs: Any, arguments: dict[str, Any]) -> None:
        if module.training:
            rows_of_calls.append(len(arguments["hidden_states"]))

    base.model.register_forward_pre_hook(begun, with_kwargs=True)
    attention = base.model.get_submodule("model.layers.0.self_attn")
    attention.register_forward_pre_hook(called, with_kwargs=True)
    _, ends = run_all(engine, specs, tmp_path)
    steps.append((rows_of_calls[0], len(rows_of_calls)))
    assert engines_of((None, ends)) == ["packed"] * 4
    rows = specs[0].training.per_device_train_batch_size
    together, apart = ([n for r, n in steps if r == k * rows] for k in (4, 2))
    assert set(together) == {2}
    assert apart.count(1) == apart.count(2) == len(apart) // 2 > 0
