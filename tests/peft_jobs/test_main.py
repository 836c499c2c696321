"""`python -m peft_jobs run`: one trial alone, with plain messages and exit codes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from peft_jobs.__main__ import main
from peft_jobs.spec import TrialSpec
from tests.support.repository import REPOSITORY

ROWS = [{"q": word, "a": f"a {word} sees"} for word in ("cat", "dog", "bird", "red", "green")] * 4


@pytest.fixture
def trial_path(tmp_path: Path, tiny_llama_path: Path) -> Path:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    content = {
        "model": str(tiny_llama_path),
        "quantization": "nf4",
        "adapter": {"r": 4, "lora_dropout": 0.1},
        "task": {"type": "causal_lm", "prompt": "{q}", "response": "{a}"},
        "data": {"train": str(rows), "validation": 0.2, "test": str(rows)},
        "training": {"learning_rate": 0.01, "max_steps": 4, "per_device_train_batch_size": 4},
        "evaluation": {"rungs": [8]},
    }
    path = tmp_path / "trial.json"
    path.write_text(TrialSpec.model_validate(content).to_json(), encoding="utf-8")
    return path


def run(arguments: list[Any], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = main(["run", *map(str, arguments), "--threads", "1"])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_a_trial_runs_again_alone_with_the_same_loss(
    trial_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "first"
    code, printed, progress = run([trial_path, "--out", out, "--json"], capsys)
    assert code == 0
    first = json.loads(printed.splitlines()[-1])
    assert first["state"] == "COMPLETE"
    assert "rung 8, 8 samples: train/loss" in progress
    result = json.loads((out / "result.json").read_text())
    assert result["metrics"] == first["metrics"]
    assert result["seconds"]["load"] > 0
    assert (out / "attempts" / "1" / "adapter" / "adapter_model.safetensors").is_file()

    command = [sys.executable, "-m", "peft_jobs", "run", out / "trial.json"]
    again = subprocess.run(
        [*map(str, command), "--out", str(tmp_path / "again"), "--threads", "1", "--json"],
        cwd=REPOSITORY,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert json.loads(again.stdout.splitlines()[-1])["metrics"] == first["metrics"]
    assert "Traceback" not in again.stderr


def test_overrides_are_yaml_values_and_are_recorded(
    trial_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ["adapter.r=2", "adapter.target_modules=[q_proj, v_proj]", "seed=7"]
    code, printed, _ = run([trial_path, *overrides, "--out", tmp_path / "o", "--test"], capsys)
    assert code == 0
    assert "done: " in printed
    assert "test/loss" in printed
    spec = TrialSpec.model_validate_json((tmp_path / "o" / "trial.json").read_text())
    assert (spec.adapter.r, spec.seed) == (2, 7)
    assert spec.adapter.target_modules == ("q_proj", "v_proj")


def test_nothing_is_overwritten(
    trial_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "taken"
    out.mkdir()
    (out / "result.json").write_text("{}")
    code, _, error = run([trial_path, "--out", out], capsys)
    assert code == 2
    assert error == f"error: {out} already holds a result: give another folder with --out\n"
    assert (out / "result.json").read_text() == "{}"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["adapter.rr=3", "seed=-1"], ["adapter.rr: unknown key 'rr'", "seed: must be"]),
        (["adapter.r"], ["an override is written key=value, got 'adapter.r'"]),
        (["adapter.target_modules=[q_porj]"], ["'q_porj' matches no module; did you mean"]),
        (["data.train=gone.jsonl"], ["data.train: no such file: gone.jsonl"]),
        (["task.response='{b}'"], ["task.response uses column 'b'"]),
        (["data.test=null", "--test"], ["--test: the trial gives no test split"]),
    ],
)
def test_bad_input_gives_plain_lines_and_exit_code_2(
    trial_path: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    overrides: list[str],
    expected: list[str],
) -> None:
    code, printed, error = run([trial_path, *overrides, "--out", tmp_path / "o"], capsys)
    assert code == 2
    assert printed == ""
    assert error.startswith("error: ")
    assert all(text in error for text in expected), error
    assert not (tmp_path / "o" / "result.json").exists()


def test_a_file_that_is_no_trial_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "cannot be read: No such file" in run([tmp_path / "gone.json"], capsys)[2]
    (tmp_path / "bad.json").write_text("{")
    assert "is neither JSON nor YAML" in run([tmp_path / "bad.json"], capsys)[2]
    (tmp_path / "empty.json").write_text("{}")
    code, _, error = run([tmp_path / "empty.json"], capsys)
    assert code == 2
    assert "model: is required, and missing" in error


def test_a_failed_trial_is_recorded_and_gives_exit_code_1(
    trial_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "o"
    huge = ["training.learning_rate=1e12", "adapter.lora_alpha=1e12"]
    code, _, error = run([trial_path, *huge, "--out", out], capsys)
    assert code == 1
    assert "error: diverged: train/loss is" in error
    assert json.loads((out / "result.json").read_text())["kind"] == "diverged"
    assert "Diverged" in (out / "attempts" / "1" / "log.txt").read_text()
