"""Slots that are evaluated together find what each finds alone."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from peft_jobs.engines.packed.composition import Composition
from peft_jobs.engines.packed.evaluations import Evaluations
from peft_jobs.engines.packed.packed_engine import PackedEngine
from peft_jobs.engines.packed.packed_trial import PackedTrial
from peft_jobs.engines.packed.parts import parts_of
from peft_jobs.engines.packed.rounds import Rounds
from peft_jobs.engines.solo.solo_engine import SoloEngine
from peft_jobs.evaluation.scoring import named, score
from peft_jobs.host.job import Job
from peft_jobs.tasks import TASKS
from peft_jobs.training.attempt import AttemptOptions, ResultDraft
from tests.peft_jobs.engines.packed.conftest import CLASSES, make_double
from tests.peft_jobs.engines.packed.test_engine import PETABYTE, check_same
from tests.support.packed_runs import run_all

METRICS = """
import torch

def first_row(model, tokenizer, rows):
    logits = model(input_ids=torch.tensor([rows[0]["input_ids"]])).logits
    return {"sum": logits.abs().sum().item(), "rows": len(logits)}
"""


class Heard(Job):
    """A job of which `heard` gets the number and step of each report."""

    heard: Callable[[int, int], None] = staticmethod(lambda trial, step: None)

    def report(self, progress: Any) -> None:
        self.heard(self.trial, progress.step)


@contextmanager
def composed(base: Any, data: Any, specs: Sequence[Any], folder: Path) -> Iterator[Rounds]:
    """Slots in a pack."""
    composition = Composition()
    rounds = Rounds(composition, len(specs))
    slots = []
    for number, spec in enumerate(specs):
        job = Heard(number, 1, spec, folder / str(number), None, threading.Condition())
        parts, draft = parts_of(spec, base.model), ResultDraft()
        slots.append(PackedTrial(job, base, data, parts, draft, AttemptOptions()))
    composition.compose(slots)
    try:
        yield rounds
    finally:
        composition.keep([])


def alone(slot: PackedTrial) -> dict[str, float]:
    """The metrics of one slot, as it evaluates by itself."""
    assert slot.row is not None
    with slot.row.pack.stepping([slot.row.slot], None):
        return score(slot.base.model, slot.base, slot.spec, slot.scoring.rows("validation"))


def together(slot: PackedTrial) -> dict[str, float]:
    """The metrics of one slot, as they were found out with the others'."""
    return named("validation", TASKS[slot.spec.task.type].metrics(slot.scoring.known["validation"]))


@pytest.mark.parametrize(
    ("params", "double", "close"),
    [
        ({}, True, 1e-10),
        ({"task": CLASSES}, True, 1e-10),
        ({}, False, 1e-5),
        ({"quantization.scheme": "nf4"}, False, 1e-5),
        ({"task": CLASSES, "quantization.scheme": "nf4"}, False, 1e-5),
    ],
    ids=["float64", "float64 classes", "float32", "nf4", "nf4 classes"],
)
def test_metrics_found_together_are_those_found_alone(
    cache: str, mixed: Any, tmp_path: Path, params: dict[str, Any], double: bool, close: float
) -> None:
    specs = mixed(**params, **{"evaluation.per_device_eval_batch_size": 3})
    base, data = SoloEngine(cache, threads=1).check(specs[0])
    if double:
        make_double(base)
    with composed(base, data, specs, tmp_path) as rounds:
        slots = rounds.composition.trials
        for _ in range(12):
            rounds.make(slots)
        rounds.evaluations.make(slots, "validation")
        losses = []
        for slot in slots:
            expected = alone(slot)
            assert together(slot) == pytest.approx(expected, rel=close, abs=close)
            losses.append(expected["validation/loss"])
    assert min(abs(a - b) for a in losses for b in losses if a is not b) > 1e-4, "they differ"


@pytest.mark.parametrize("task", ["causal", "classes"])
def test_bfloat16_found_together_differs_as_little_as_by_another_padding(
    cache: str, mixed: Any, tmp_path: Path, task: str
) -> None:
    params = {"training.bf16": True, "evaluation.per_device_eval_batch_size": 4}
    specs = mixed(**params, **({"task": CLASSES} if task == "classes" else {}))
    base, data = SoloEngine(cache, threads=1).check(specs[0])
    noise, differences = [], []
    with composed(base, data, specs, tmp_path) as rounds:
        slots = rounds.composition.trials
        for _ in range(12):
            rounds.make(slots)
        rounds.evaluations.make(slots, "validation")
        for slot in slots:
            expected = alone(slot)["validation/loss"]
            differences.append(abs(together(slot)["validation/loss"] - expected))
            slot.spec = slot.spec.with_params({"evaluation.per_device_eval_batch_size": 1})
            noise.append(abs(alone(slot)["validation/loss"] - expected))
    assert max(differences) < max(3 * max(noise), 1e-3)


def test_slots_at_a_rung_share_their_forwards_and_own_metrics_see_one_slot(
    cache: str, mixed: Any, tmp_path: Path, watch_forward: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "metrics_of_one.py").write_text(METRICS)
    monkeypatch.syspath_prepend(tmp_path)
    specs = mixed(
        **{
            "training.per_device_train_batch_size": 2,
            "training.gradient_accumulation_steps": 1,
            "evaluation.rungs": [6],
            "evaluation.per_device_eval_batch_size": 5,
        }
    )[:4]
    specs[1] = specs[1].with_params({"evaluation.metrics": ["metrics_of_one:first_row"]})
    expected = run_all(SoloEngine(cache, threads=1), specs, tmp_path / "solo")
    engine = PackedEngine(cache, num_slots=4, threads=1)
    base, _ = engine.solo.check(specs[0])
    rows: list[int] = []
    with watch_forward(base, lambda training, number: None if training else rows.append(number)):
        found = run_all(engine, specs, tmp_path / "packed")
    check_same(expected, found)
    at_rung = next(report for report in found[0][1] if report.rung == 6)
    assert at_rung.metrics["validation/rows"] == 1
    assert 4 * 5 in rows, "four slots, five rows"


def test_a_slot_at_no_rung_does_not_wait_for_those_that_are(
    cache: str, mixed: Any, tmp_path: Path, watch_forward: Any
) -> None:
    same = {"training.per_device_train_batch_size": 2, "training.gradient_accumulation_steps": 1}
    specs = [
        spec.with_params({"evaluation.rungs": [rung]})
        for spec, rung in zip(mixed(**same)[:3], (4, 8, 4), strict=True)
    ]
    base, data = SoloEngine(cache, threads=1).check(specs[0])
    events: list[Any] = []
    with composed(base, data, specs, tmp_path) as rounds:
        for slot in rounds.composition.trials:
            slot.job.heard = lambda trial, step: events.append((trial, step))  # type: ignore[attr-defined]
        rounds.make(rounds.composition.trials)
        with watch_forward(base, lambda training, rows: events.append("step" if training else "")):
            rounds.make(rounds.composition.trials)
    seen = [event for event in events if event != "step"]
    first, last = seen.index(""), len(seen) - 1 - seen[::-1].index("")
    assert sorted(seen[:first]) == [(0, 1), (1, 1), (1, 2), (2, 1)]
    assert seen[first : last + 1] == [""] * (last + 1 - first), "one evaluation of two"
    assert sorted(seen[last + 1 :]) == [(0, 2), (2, 2)]


@pytest.mark.parametrize("most", [10, 5])
def test_what_memory_is_too_small_for_together_is_found_by_fewer_or_alone(
    cache: str, mixed: Any, tmp_path: Path, watch_forward: Any, most: int
) -> None:
    same = {"training.per_device_train_batch_size": 1, "training.gradient_accumulation_steps": 1}
    specs = mixed(**same, **{"evaluation.per_device_eval_batch_size": 5, "evaluation.rungs": [4]})
    expected = run_all(SoloEngine(cache, threads=1), specs, tmp_path / "solo")
    engine = PackedEngine(cache, num_slots=5, threads=1)
    base, _ = engine.solo.check(specs[0])
    refused: list[int] = []

    def look(training: bool, rows: int) -> None:
        if not training and rows > most:
            refused.append(rows)
            torch.empty(PETABYTE)

    with watch_forward(base, look):
        found = run_all(engine, specs, tmp_path / "packed")
    check_same(expected, found)
    assert refused == [25, 15] if most == 10 else [25, 15, 10], "and not again at the end"
    assert engine.num_slots == 5
    assert [end.memory_ladder for end in found[1].values()] == [[]] * 5


def test_an_error_in_a_common_evaluation_is_left_to_the_slot_whose_own_it_is(
    cache: str, mixed: Any, tmp_path: Path
) -> None:
    same = {"training.per_device_train_batch_size": 1, "training.gradient_accumulation_steps": 1}
    specs = mixed(**same, **{"evaluation.per_device_eval_batch_size": 5})[:3]
    base, data = SoloEngine(cache, threads=1).check(specs[0])

    def refuse(module: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        if not module.training and output.isnan().any():
            raise ArithmeticError("a kernel that takes no NaN")

    with composed(base, data, specs, tmp_path) as rounds:
        slots = rounds.composition.trials
        rounds.make(slots)
        base.model.lm_head.register_forward_hook(refuse)  # gone with the pack
        row = slots[1].row
        assert row is not None
        row.pack.values_KP[1] = float("nan")
        Evaluations(rounds.composition).make(slots, "validation")
        assert [slot.scoring.known for slot in slots] == [{}] * 3
        ends = [slot.end()() for slot in slots]
    assert [end and end.state for end in ends] == ["COMPLETE", "FAIL", "COMPLETE"]
    assert ends[1] is not None
    assert "a kernel that takes no NaN" in str(ends[1].error)
