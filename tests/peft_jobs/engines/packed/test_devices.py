"""Packed trials are the solo engine's on a GPU too, where kernels round as the shapes ask for.

On a CPU, where they round alike, the same functions hold as closely as elsewhere.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from peft_jobs import Progress
from peft_jobs.engines.packed.packed_engine import PackedEngine
from peft_jobs.engines.solo.solo_engine import SoloEngine
from tests.support.devices import on_each_device
from tests.support.packed_runs import run_all, told

PETABYTE = 2**50
NF4 = {"quantization.scheme": "nf4"}
DOUBLE = {**NF4, "quantization.bnb_4bit_use_double_quant": True}
INT8 = {"quantization.scheme": "int8", "quantization.llm_int8_threshold": 0.0}
BF16 = {"training.bf16": True}
DROPOUT = {"adapter.lora_dropout": 0.1}
WHOLE = {"adapter.lora_dropout": 0.0}


def close_on(device: torch.device, bf16: bool = False) -> float:
    """How far losses may be apart, relative to the larger of 1 and themselves."""
    return 2e-2 if bf16 or device.type == "cuda" else 1e-5


def losses_apart(one: Sequence[Progress], other: Sequence[Progress]) -> float:
    """The largest relative difference of a loss in two curves; a perplexity would magnify it."""
    names = ("train/loss", "validation/loss")
    return max(
        abs(a.metrics[name] - b.metrics[name]) / max(1.0, abs(a.metrics[name]))
        for a, b in zip(one, other, strict=True)
        for name in a.metrics.keys() & names
    )


def check_close(expected: Any, found: Any, close: float) -> None:
    """The same trials, reported at the same steps, with losses no further apart than `close`."""
    for trial, reports in expected[0].items():
        one, other = expected[1][trial], found[1][trial]
        assert one.error is None, one.traceback
        assert other.error is None, other.traceback
        assert told(found[0][trial]) == told(reports)
        assert losses_apart(reports, found[0][trial]) < close
        assert (other.state, other.step, other.tokens) == (one.state, one.step, one.tokens)
        assert other.provenance["engine"] == "packed"


@on_each_device
@pytest.mark.parametrize(
    "params",
    [NF4 | WHOLE, NF4 | DROPOUT, NF4 | BF16, DOUBLE, DOUBLE | BF16 | DROPOUT, INT8 | WHOLE],
    ids=["nf4", "nf4 dropout", "nf4 bf16", "double", "double bf16 dropout", "int8"],
)
def test_packed_trials_are_the_solo_engines_on_each_device(
    device: torch.device, cache: str, mixed: Any, tmp_path: Path, params: dict[str, Any]
) -> None:
    specs = mixed(**params, **{"evaluation.rungs": [5, 12]})
    expected = run_all(SoloEngine(cache, threads=1), specs, tmp_path / "solo")
    engine = PackedEngine(cache, num_slots=3, threads=1)
    found = run_all(engine, specs, tmp_path / "packed")
    rounds_activations = "int8" in params.values()
    check_close(expected, found, close_on(device, "training.bf16" in params or rounds_activations))
    assert engine.solo.base is not None
    assert engine.solo.base.device == device
    if device.type == "cuda":
        for result in found[1].values():
            assert result.memory["pack_peak_reserved_bytes"] > 0
            assert result.provenance["device"] == torch.cuda.get_device_name()


@on_each_device
@pytest.mark.parametrize(("first", "second"), [("packed", "solo"), ("solo", "packed")])
def test_either_engine_goes_on_from_the_others_checkpoints_on_each_device(
    device: torch.device, cache: str, mixed: Any, tmp_path: Path, first: str, second: str
) -> None:
    specs = mixed(**DOUBLE, **{"evaluation.rungs": [9]})[:3]
    kinds: dict[str, Callable[[], Any]] = {
        "solo": lambda: SoloEngine(cache, threads=1, checkpoint_seconds=0),
        "packed": lambda: PackedEngine(cache, num_slots=3, threads=1, checkpoint_seconds=0),
    }
    expected = run_all(kinds[first](), specs, tmp_path)
    starts = {
        trial: [report.checkpoint for report in reports if report.checkpoint][trial]
        for trial, reports in expected[0].items()
    }
    reports, ends = run_all(kinds[second](), specs, tmp_path, checkpoints=starts, attempt=2)
    for trial, whole in expected[0].items():
        assert ends[trial].error is None, ends[trial].traceback
        step = ends[trial].provenance["resumed_from"]
        assert 0 < step < 8
        rest = [report for report in whole if report.step >= step]
        assert told(reports[trial]) == told(rest)
        assert losses_apart(rest, reports[trial]) < close_on(device)


@on_each_device
def test_memory_that_runs_out_in_a_pack_costs_no_trial(
    device: torch.device, cache: str, mixed: Any, watch_forward: Any, tmp_path: Path
) -> None:
    same = {
        "training.per_device_train_batch_size": 2,
        "training.gradient_accumulation_steps": 1,
    }
    specs = mixed(**NF4, **same)[:4]
    expected = run_all(SoloEngine(cache, threads=1), specs, tmp_path / "solo")
    engine = PackedEngine(cache, num_slots=4, threads=1)
    base, _ = engine.solo.check(specs[0])
    refused: list[int] = []

    def look(training: bool, rows: int) -> None:
        if training and rows > 4:
            refused.append(rows)
            torch.empty(PETABYTE, device=device)

    with watch_forward(base, look):
        found = run_all(engine, specs, tmp_path / "packed")
    assert refused
    check_close(expected, found, close_on(device))
    assert engine.num_slots == 4, "where nobody runs any more, there is room again"
