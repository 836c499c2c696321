"""The look at a GPU: its parts run whole on a CPU, and what they find is read right."""

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.autograd import DeviceType

from tests.support.repository import REPOSITORY

SCRIPT = REPOSITORY / "infra" / "gpu_check.sh"
HIDDEN = {"CUDA_VISIBLE_DEVICES": "", "PYTHON": sys.executable}


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """name -> a module of the benchmarks, which are no package."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "infra" / "benchmarks"))
    return importlib.import_module


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_dry_run_has_all_parts_and_needs_no_package_of_sweeps(tmp_path: Path) -> None:
    blocked, out = tmp_path / "blocked", tmp_path / "out"
    blocked.mkdir()
    for name in ("ray", "optuna", "mlflow"):
        (blocked / f"{name}.py").write_text(f"raise ModuleNotFoundError({name!r})\n")
    done = subprocess.run(
        ["bash", str(SCRIPT), "--dry-run", "--out", str(out)],
        env={**os.environ, **HIDDEN, "PYTHONPATH": str(blocked)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((out / "gpu_check.json").read_text())
    parts = [(part["name"], part["outcome"]) for part in found["parts"]]
    assert parts == [(name, "ok") for name in ("versions", "tests", "probe", "7B")]
    assert found["versions"]["torch"] == torch.__version__
    assert [text for text in found["skipped"] if "no ray, optuna, mlflow" in text]
    probe = found["probe"]
    assert (probe["failed"], probe["skipped"]) == ({}, [])
    assert {one["name"]: one["not_packed_because"] for one in probe["parity"]} == {
        "bfloat16 autocast": None,
        "no autocast": None,
    }
    assert all(one["learned"] > 0 for one in probe["parity"])
    assert [(one["slots"], one["dropout"] > 0) for one in probe["steps"]] == [
        (4, False),
        (4, True),
        (1, False),
        (1, True),
    ]
    assert all(one["operators"] > 1000 and one["all_at_once"] for one in probe["steps"])
    arms = [one["arm"] for one in found["packing"]["measurements"]]
    assert arms == ["B1", "B2", "B2-graphed", "B5"]
    page = (out / "gpu_check.md").read_text()
    assert "| packed is solo, demo, no autocast | yes |" in page
    assert "0 of " in page
    assert "Traceback" not in page


def test_random_rows_have_what_an_end_of_a_trial_asks_of_them(module: Any) -> None:
    data = module("random_base").make_data(32, 100)
    found = {"train": data.train, "validation": data.validation}
    assert {split: len(numbers) for split, numbers in data.numbers.items()} == {
        split: len(rows) for split, rows in found.items()
    }


def test_without_a_gpu_it_says_so_and_ends(tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", str(SCRIPT), "--out", str(tmp_path)],
        env={**os.environ, **HIDDEN},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("gpu_check: there is no GPU: ")
    assert len(done.stderr.splitlines()) == 1


def test_a_part_that_hangs_is_ended_with_all_it_has_started(
    module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu_check = module("gpu_check")
    monkeypatch.setattr(gpu_check, "STOPPING_SECONDS", 0.2)
    deaf = "trap '' INT; sleep 600 & echo $!; wait"
    process = subprocess.Popen(
        ["bash", "-c", deaf], stdout=subprocess.PIPE, start_new_session=True, text=True
    )
    assert process.stdout is not None
    child = int(process.stdout.readline())
    assert gpu_check.waited(process, 0.1) == "stopped after 0 s"
    deadline = time.monotonic() + 60
    while _runs(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _runs(child)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def event(
    name: str, start: float, end: float, device: DeviceType = DeviceType.CPU, **more: Any
) -> Any:
    span = SimpleNamespace(start=start, end=end)
    return SimpleNamespace(name=name, time_range=span, device_type=device, **more)


def test_a_window_counts_what_lies_between_its_reports(module: Any) -> None:
    window = module("gpu_window")
    gpu = DeviceType.CUDA
    found = window.per_step(
        [
            *[event(window.MARK, time, time + 1) for time in (0, 1000, 2000)],
            event(window.MARK, 0, 2500, gpu),
            *[event("cudaLaunchKernel", time, time + 5) for time in (-9, 10, 20, 1010)],
            event("cuLaunchKernelEx", 1020, 1030),
            event("cudaMemcpyAsync", 30, 40),
            event("cudaStreamSynchronize", 40, 900),
            event("cudaDeviceSynchronize", 2005, 2400),  # the window's own, after its end
            *[event("aten::mul", time, time + 1) for time in (5, 6, 1005, 2001)],
            event("kernel", 100, 500, gpu, is_user_annotation=False),
            event("kernel on another stream", 400, 800, gpu, is_user_annotation=False),
            event("Optimizer.step", 0, 2000, gpu, is_user_annotation=True),
            event("kernel", 1200, 1500, gpu, is_user_annotation=False),
        ]
    )
    assert found == {
        "launches": 2.0,
        "copies": 0.5,
        "synchronisations": 0.5,
        "operators": 1.5,
        "kernels": 1.5,
        "gpu_ms": 0.5,
        "gap_between_steps_ms": 0.4,
        "profiled_step_ms": 1.0,
    }


def content(**more: Any) -> dict[str, Any]:
    parts = [{"name": "probe", "outcome": "ok", "seconds": 1.0, "log": "probe.txt"}]
    return {"dry_run": False, "parts": parts, "skipped": [], **more}


def test_goals_are_held_against_the_trial_alone_of_the_same_repeat(module: Any) -> None:
    report = module("gpu_report")

    def one(arm: str, slots: int, seconds: float, **more: Any) -> dict[str, Any]:
        cell = {"model": "7B (random)", "parameters": 1, "quantization": "nf4", "tokens": 128}
        times = {"repeat": 0, "run": "1", "seconds": seconds, "trial_steps": slots * 10}
        return {**cell, "arm": arm, "slots": slots, **times, **more}

    measured = [one("B1", 1, 1.0), one("B2", 1, 0.8), one("B5", 8, 1.6), one("B5-auto", 8, 9.0)]
    failed = {"arm": "B2-graphed", "slots": 1, "run": "1", "failed": "out of memory"}
    measured.append({k: v for k, v in one("", 1, 1.0).items() if k != "seconds"} | failed)
    verdicts = report.goals(content(packing={"measurements": measured}))
    assert verdicts[0] == (
        "7B, 128 tokens, K=8: above 4.72 x B1",
        True,
        "**5.00** (5.00 to 5.00)",
    )
    assert verdicts[1][1:] == (None, "**4.00** (4.00 to 4.00)")
    assert verdicts[2][1:] == (None, "out of memory")
    assert verdicts[3][1:] == (None, "not measured")
    assert verdicts[6] == ("never below B1 with the engine's own K", False, "0.89, of 1 cells")


def test_what_is_wrong_fails_the_look_and_what_is_slow_does_not(module: Any) -> None:
    report = module("gpu_report")
    same = {"name": "x", "not_packed_because": None, "largest_loss": 4.0}
    good = content(probe={"parity": [same | {"loss_difference_max": 0.01}], "failed": {}})
    assert report.holds(good)
    apart = content(probe={"parity": [same | {"loss_difference_max": 0.4}], "failed": {}})
    alone = same | {"loss_difference_max": 0.0, "not_packed_because": "the base draws"}
    broken = content(probe={"failed": {"steps: 7B": "Traceback\nRuntimeError: no kernel\n"}})
    suite = (
        '<testsuites><testsuite><testcase name="t"><failure/></testcase></testsuite></testsuites>'
    )
    for bad in (apart, content(probe={"parity": [alone]}), broken, content(tests_xml=suite)):
        assert not report.holds(bad)
    assert "| steps: 7B | **no** | RuntimeError: no kernel |" in report.markdown(broken)
    late = content()
    late["parts"][0]["outcome"] = "stopped after 9 s"
    assert not report.holds(late)
