"""A device that takes no more work ends no trial: it ends the host, and says so."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from peft_jobs.device.lost_device import raising_device_lost, result_of
from peft_jobs.engines.packed.packed_engine import PackedEngine
from peft_jobs.engines.solo.solo_engine import SoloEngine
from peft_jobs.errors import DeviceLost
from peft_jobs.host.messages import Assignment, Report
from peft_jobs.host.trial_host import TrialHost
from tests.support.devices import needs_cuda

ILLEGAL = "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be ..."
WAIT = 60.0


@pytest.fixture
def specs(trial: Any, rows_path: Path) -> list[Any]:
    common = {
        "task": {"type": "causal_lm", "prompt": "{q}", "response": "{a}"},
        "data.train": {"path": str(rows_path)},
        "data.subset": 20,
        "training.max_steps": 6,
        "training.logging_steps": 1,
    }
    return [trial({**common, "seed": seed}) for seed in range(5)]


def break_after(base: Any, num_forwards: int) -> None:
    """From then on a training forward on the base ends as all of CUDA's calls would."""
    seen: list[None] = []

    def look(module: Any, _inputs: Any) -> None:
        if module.training:
            seen.append(None)
            if len(seen) > num_forwards:
                raise torch.AcceleratorError(ILLEGAL)

    base.model.register_forward_pre_hook(look)


def follow(host: TrialHost, number: int, reports: list[Any]) -> None:
    """Acknowledge messages for as long as there are some."""
    while (message := host.next_report(number, 1, len(reports), WAIT)) is not None:
        reports.append(message)


@pytest.mark.parametrize("slots", [None, 3])
def test_trials_without_a_device_end_as_nothing_and_wait(
    specs: list[Any], tmp_path: Path, slots: int | None
) -> None:
    cache = str(tmp_path / "cache")
    engine = SoloEngine(cache, 1) if slots is None else PackedEngine(cache, slots, 1)
    solo = engine if isinstance(engine, SoloEngine) else engine.solo
    base, _ = solo.check(specs[0])
    break_after(base, 3)
    told: list[None] = []
    host = TrialHost(engine, on_lost=lambda: told.append(None))
    for number, spec in enumerate(specs):
        host.submit(
            Assignment(number, 1, spec.to_json(), str(tmp_path / str(number) / "attempts" / "1"))
        )
    heard = []
    for number in range(len(specs)):
        reports: list[Any] = []
        with pytest.raises(DeviceLost, match=r"no more work .* an illegal memory access was enc"):
            follow(host, number, reports)
        assert all(isinstance(report, Report) for report in reports)
        heard.append(len(reports))
    assert heard[0] > 0, "what it had reported"
    assert told == [None]
    assert host.close(WAIT)


def test_a_host_without_a_device_takes_no_more_trials(specs: list[Any], tmp_path: Path) -> None:
    engine = SoloEngine(str(tmp_path / "cache"), 1)
    break_after(engine.check(specs[0])[0], 0)
    host = TrialHost(engine)
    for number in range(2):
        host.submit(Assignment(number, 1, specs[0].to_json(), str(tmp_path / str(number))))
        with pytest.raises(DeviceLost):
            host.next_report(number, 1, 0, WAIT)
    assert host.status()["queued"] == []


def raising(error: Exception) -> Callable[[], None]:
    @raising_device_lost()
    def fails() -> None:
        raise error

    return fails


def test_memory_and_bugs_are_a_trials_own() -> None:
    memory = torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be ...")
    assert result_of(memory, "").kind == "out_of_memory"
    assert result_of(RuntimeError(ILLEGAL), "").kind == "bug"
    for error in (memory, RuntimeError(ILLEGAL)):
        with pytest.raises(type(error)):
            raising(error)()
    with pytest.raises(DeviceLost):
        result_of(torch.AcceleratorError(ILLEGAL), "")
    with pytest.raises(DeviceLost):
        raising(torch.AcceleratorError(ILLEGAL))()
    with pytest.raises(DeviceLost, match=r"^once$"):
        raising(DeviceLost("once"))()


@pytest.mark.gpu
@needs_cuda
def test_an_error_of_one_call_leaves_the_device() -> None:
    torch.ones(1, device="cuda")
    assert result_of(torch.AcceleratorError("CUDA error: invalid argument"), "").kind == "bug"
