"""`submit` and what follows it, with a real job server that wants a token."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.ray_nodes import free_port, ray_node, wait_for

TOKEN = "a-token-of-the-tests-0123456789abcdef"
SECRET = "only-the-cluster-knows"
SWEEP = """
model: demo
quantization: nf4
task: {type: causal_lm, prompt: "{record} ", response: "{sentence}"}
data: {train: rows.jsonl, validation: 0.2}
space: {function: "myspaces.wide:draw"}
budget: {n_trials: 40, max_samples: 900}
resources: {engine: simulated, engine_options: {step_seconds: 0.05}}
tracking: none
"""
SPACE = """
from myspaces.widths import WIDTHS

def draw(trial):
    rate = trial.suggest_float("training.learning_rate", 1e-4, 1e-2, log=True)
    return {"adapter.r": trial.suggest_categorical("adapter.r", WIDTHS),
            "training.learning_rate": rate}
"""

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address of the job server of a cluster whose environment holds a secret."""
    ports = [free_port() for _ in range(4)]
    names = ("dashboard-port", "dashboard-agent-listen-port", "ray-client-server-port")
    options = [f"--{name}={port}" for name, port in zip(names, ports, strict=False)]
    with monkeypatch.context() as patched, tempfile.TemporaryDirectory(dir="/tmp") as scratch:
        patched.setenv("RAY_AUTH_MODE", "token")
        patched.setenv("RAY_AUTH_TOKEN", TOKEN)
        patched.setenv("MLFLOW_TRACKING_PASSWORD", SECRET)
        patched.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        (tmp_path / "node").mkdir()
        with ray_node(
            tmp_path / "node",
            *options,
            "--include-dashboard=true",
            "--dashboard-host=127.0.0.1",
            "--num-cpus=2",
            f"--temp-dir={scratch}",
        ):
            yield f"http://127.0.0.1:{ports[0]}"


@pytest.fixture
def laptop(tmp_path: Path, server: str) -> Command:
    """Words -> the command, in a folder that the cluster does not know, with the token."""
    folder = tmp_path / "laptop"
    (folder / "myspaces").mkdir(parents=True)
    (folder / "waves.yaml").write_text(SWEEP)
    (folder / "rows.jsonl").write_text('{"record": "a", "sentence": "b"}\n' * 10)
    (folder / "myspaces" / "wide.py").write_text(SPACE)
    (folder / "myspaces" / "widths.py").write_text("WIDTHS = [4, 8, 16, 32]\n")

    def run(*words: str, token: str | None = TOKEN) -> "subprocess.CompletedProcess[str]":
        hidden = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "MLFLOW_TRACKING_PASSWORD")
        environment = {k: v for k, v in os.environ.items() if k not in hidden}
        environment["PYTHONPATH"] = os.pathsep.join([".", os.environ.get("PYTHONPATH", "")])
        environment |= {} if token is None else {"RAY_AUTH_TOKEN": token}
        return subprocess.run(
            [sys.executable, "-m", "sweeps.cli", *words, "--address", server],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=180,
        )

    return run


@pytest.mark.slow
def test_a_submitted_sweep_is_followed_stopped_and_taken_up_again(
    laptop: Command, tmp_path: Path
) -> None:
    storage = tmp_path / "shared"

    def status() -> dict[str, Any]:
        done = laptop("status", "waves", "--json")
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    for token in (None, "another-token-of-32-characters-or-more"):
        refused = laptop("submit", "waves.yaml", f"storage={storage}", token=token)
        assert refused.returncode == 2
        assert "RAY_AUTH_TOKEN" in refused.stderr

    first = laptop("submit", "waves.yaml", f"storage={storage}")
    assert first.returncode == 0, first.stderr
    again = laptop("submit", "waves.yaml", f"storage={storage}")
    assert again.returncode == 2
    assert first.stdout.strip() in again.stderr
    wait_for(lambda: list(storage.glob("waves/trials/*/result.json")))
    standing = status()
    assert standing["job"]["state"] == "RUNNING"
    assert standing["status"]["driven"] is True

    stopped = laptop("stop", "waves")
    assert stopped.returncode == 0, stopped.stderr
    assert "interrupted" in stopped.stderr
    standing = status()
    assert standing["job"]["exit_code"] == 130
    assert standing["status"]["driven"] is False
    assert 0 < sum(standing["status"]["trials"].values()) < 40
    assert laptop("stop", "waves").returncode == 2

    quickly = "resources.engine_options.step_seconds=0.002"
    second = laptop("submit", "waves.yaml", f"storage={storage}", quickly)
    assert second.returncode == 0, second.stderr
    assert second.stdout != first.stdout
    followed = laptop("logs", "waves", "--follow")
    assert followed.returncode == 0, followed.stderr
    assert "done" in followed.stderr
    assert followed.stdout.count("best") >= 1
    standing = status()
    trials = standing["status"]["trials"]
    assert trials["COMPLETE"] + trials["PRUNED"] == 40
    assert laptop("logs", "waves").stdout in followed.stdout + "\n"

    record = json.loads((storage / "waves" / "sweep.json").read_text())
    data = Path(record["sweep"]["trial"]["data"]["train"]["path"])
    assert data.parent == storage / "waves" / "inputs"
    assert data.read_text() == (tmp_path / "laptop" / "rows.jsonl").read_text()
    assert SECRET not in json.dumps(standing) + followed.stdout
    assert TOKEN not in json.dumps(standing) + followed.stdout


@pytest.mark.slow
def test_a_sweep_that_cannot_be_driven_fails_with_its_reason(
    laptop: Command, tmp_path: Path
) -> None:
    wrong = "study_url=postgresql+psycopg://127.0.0.1:9/optuna"
    done = laptop("submit", "waves.yaml", f"storage={tmp_path / 'shared'}", wrong)
    assert done.returncode == 0, done.stderr
    followed = laptop("logs", "waves", "--follow")
    assert "failed with exit code" in followed.stderr
    assert "127.0.0.1" in followed.stdout
