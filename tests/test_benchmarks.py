"""The packing benchmarks: each table in seconds on the demo base, and what is written of it."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "infra" / "benchmarks"
SMALL = ["--repeats", "1", "--threads", "1"]


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> Any:
    """name -> a module of the folder, which is no package."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


def measurements(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text())["measurements"]
    return found


def test_arguments_of_each_table(benchmarks: Any) -> None:
    parse = benchmarks("packing").parse
    steps = parse(["steps", "--slots", "1,4", "--prompt", r"{a}\n", "--model", "some/where"])
    assert steps.slots == [1, 4]
    assert steps.prompt == "{a}\n"
    assert steps.model_name == "where"
    assert parse(["sweep"]).model_name == "demo"
    assert parse(["sweep"]).arms[0] == "B0"
    assert parse(["gpu"]).shape == ["0.5B", "1.5B", "7B"]
    with pytest.raises(SystemExit):
        parse(["weeks"])


def test_steps_measures_each_arm_and_compares_its_losses(benchmarks: Any, tmp_path: Path) -> None:
    out = tmp_path / "packing.json"
    few = ["--tokens", "32", "--slots", "2", "--quantization", "nf4", "--arm-seconds", "0.1"]
    assert benchmarks("packing").main(["steps", *few, *SMALL, "--out", str(out)]) == 0
    found = measurements(out)
    assert [one["arm"] for one in found] == ["B1", "B4", "B5", "B5-auto"]
    for one in found:
        assert one["trial_steps"] >= 9 * (1 if one["arm"] == "B1" else 2)
        assert one["seconds"] > 0
        assert one["real_tokens"] <= one["padded_tokens"] <= 32
    for one in found[1:]:
        assert 0 <= one["loss_difference_mean"] <= one["loss_difference_max"] < 1e-4
    assert "| 2 | B5 |" in out.with_suffix(".md").read_text()


def test_looped_adapters_give_the_gradients_of_batched_ones(
    benchmarks: Any, tmp_path: Path
) -> None:
    arms, cells = benchmarks("arms"), benchmarks("cells")
    packing = benchmarks("packing")
    from peft_jobs.solo import SoloEngine
    from peft_jobs.spec import TrialSpec

    options = packing.parse(["steps"])
    spec = TrialSpec.model_validate(packing.trial(options, "none", 2, 32))
    engine = SoloEngine(str(tmp_path), threads=1)
    trials = [
        spec.with_params(
            {"seed": seed, "training.max_steps": 6, "training.logging_steps": 1}
            | {"training.learning_rate": 1e-2}
        )
        for seed in range(3)
    ]
    kinds = {"looped": arms.looped, "packed": arms.packed}
    ran = {name: cells.run(make(engine, 3), trials) for name, make in kinds.items()}
    losses = {name: [job.losses for job in one.jobs] for name, one in ran.items()}
    assert losses["looped"][0] == pytest.approx(losses["packed"][0], abs=1e-5)
    assert losses["looped"][2] == pytest.approx(losses["packed"][2], abs=1e-5)
    assert losses["looped"][0][-1] < losses["looped"][0][0] - 0.1  # they do learn


def test_gpu_table_refuses_in_one_line_without_a_gpu(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    out = tmp_path / "packing.json"
    command = [sys.executable, str(FOLDER / "packing.py"), "gpu", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "needs a CUDA device" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "Not run: no GPU was at hand." in out.with_suffix(".md").read_text()


def test_gpu_table_on_a_tiny_shape(benchmarks: Any, tmp_path: Path) -> None:
    out = tmp_path / "packing.json"
    few = ["--shape", "tiny", "--tokens", "64", "--slots", "2", "--r", "8", "--arm-seconds", "0.1"]
    arms = ["--arms", "B1,B4,B5"]
    assert benchmarks("packing").main(["gpu", *few, *arms, *SMALL, "--out", str(out)]) == 0
    found = measurements(out)
    assert [one["arm"] for one in found] == ["B1", "B4", "B5"]
    assert {one["padded_tokens"] for one in found} == {64}
    assert found[2]["loss_difference_max"] < 1e-4


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "arm", ["B0", "B1", "B3", "B5", "B5-inline", "B5-ray", "B6", "B7", "B9", "B9-ray"]
)
def test_each_arm_of_a_small_sweep(benchmarks: Any, tmp_path: Path, arm: str) -> None:
    out = tmp_path / "packing.json"
    few = ["--trials", "4", "--steps", "8", "--slots", "2", "--arms", arm]
    assert benchmarks("packing").main(["sweep", *few, *SMALL, "--out", str(out)]) == 0
    (one,) = measurements(out)
    assert 0 < one["startup_seconds"] < one["seconds"]
    assert 1 <= one["completed"] <= 4
    assert one["steps_done"] <= 32
    assert 1 < one["best_loss"] < 8


def test_tables_name_gains_losses_and_what_was_not_run(benchmarks: Any) -> None:
    def one(arm: str, repeat: int, seconds: float, **more: Any) -> dict[str, Any]:
        cell = {"table": "steps", "run": "1", "model": "m", "parameters": 10**6, "slots": 2}
        cell |= {"quantization": "none", "tokens": 64, "real_tokens": 60.0, "padded_tokens": 64.0}
        cell |= {"supervised_tokens": 10.0, "peak_bytes": 10**6, "load": 0.5}
        clocks = {"seconds": seconds, "processor_seconds": seconds, "trial_steps": 10}
        return cell | clocks | {"arm": arm, "repeat": repeat} | more

    versions = dict.fromkeys(("torch", "transformers", "peft"), "1.0")
    run = {"machine": "2 cores", "date": "today", "command": "packing.py steps"}
    away = {"loss_difference_max": 2e-6, "loss_difference_mean": 1e-7}
    measured = [one("B1", 0, 1.0), one("B1", 1, 2.0), one("B1", 2, 1.0)]
    measured += [one("B5", 0, 2.0, **away), one("B5", 1, 2.0, **away), one("B5", 2, 1.25, **away)]
    content = {
        "runs": {"1": {**run, "environment": {"versions": versions}}},
        "measurements": measured,
    }
    tables = benchmarks("tables")
    assert tables.gains(measured[3:], measured[:3]) == [0.5, 0.8, 1.0]
    text = tables.markdown(content)
    assert "**0.80** (0.50 to 1.00)" in text
    assert "2.0e-06 | 1.0e-07" in text
    assert "Cells where packing (B5) is slower than B1: m none, 64 tokens, K=2: 0.80." in text
    assert "Not run: no GPU was at hand." in text
    empty = tables.markdown({"runs": {}, "measurements": []})
    assert empty.count("Not run") == 3


def test_record_keeps_what_earlier_calls_measured(benchmarks: Any, tmp_path: Path) -> None:
    record_of = benchmarks("record").Record
    path = tmp_path / "packing.json"
    for number in ("1", "2"):
        record = record_of(path)
        assert record.begin("steps", "packing.py steps") == number
        record.add(number, {"tokens": 64}, {"arm": "B1"})
    record = record_of(path)
    assert [one["run"] for one in record.content["measurements"]] == ["1", "2"]
    record.forget("sweep")
    assert len(record.content["measurements"]) == 2
    record.forget("steps")
    assert record.content == {"runs": {}, "measurements": []}
