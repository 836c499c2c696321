"""A sweep file of simulated trials, and the command line in this process or in one of its own."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from sweeps.cli.app import app

SWEEP = """
model: demo
quantization: nf4
task: {type: causal_lm, prompt: "{record} ", response: "{sentence}"}
data: {train: demo, validation: demo}
space:
  parameters:
    adapter.r: {choices: [4, 8, 16, 32]}
    adapter.lora_alpha: 2 * adapter.r
    adapter.target_modules: {choices: [attention-qv, all-linear]}
    training.learning_rate: {low: 1.0e-4, high: 1.0e-2, log: true}
budget: {n_trials: 9, max_samples: 900}
resources: {backend: inline, engine: simulated}
tracking: none
seed: 1
"""
COMMAND = [sys.executable, "-c", "from sweeps.cli import main; main()"]

Cli = Callable[..., Result]
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with `waves.yaml` in it."""
    (tmp_path / "waves.yaml").write_text(SWEEP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PEFT_SWEEPS_STUDY_URL", raising=False)
    return tmp_path


@pytest.fixture
def cli(folder: Path) -> Cli:
    """Words -> the result of the command, run in this process."""
    runner = CliRunner()
    return lambda *words: runner.invoke(app, [str(word) for word in words])


@pytest.fixture
def start(folder: Path) -> Start:
    """Words -> the command, started in a process of its own."""

    def begin(*words: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [*COMMAND, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )

    return begin


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage with one sweep: nine trials, trial 3 failed, some pruned."""
    folder = tmp_path_factory.mktemp("recorded")
    (folder / "waves.yaml").write_text(SWEEP)
    bug = "resources.engine_options={faults: {3: bug}}"
    done = CliRunner().invoke(
        app, ["run", str(folder / "waves.yaml"), f"storage={folder / 'runs'}", bug]
    )
    assert done.exit_code == 0, done.output
    return folder / "runs"


@pytest.fixture
def ended(cli: Cli, folder: Path, recorded: Path) -> Cli:
    """The command line, where the recorded sweep lies in `runs`."""
    shutil.copytree(recorded, folder / "runs")
    return cli
