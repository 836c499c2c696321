"""Secrets stay where they are: planted in the environment and in URLs, then searched for.

A sweep runs as a user runs it, on real Ray, tracked by a real MLflow server. Whatever it wrote is
read byte by byte: its storage with databases and their logs, the study elsewhere, the server's
database and artifacts, what it printed, Ray's session folder, the home folder. The command lines of
its processes are looked at while it runs.
"""

import base64
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
import yaml

from tests.support.mlflow_server import Server
from tests.support.ray_nodes import free_port

COMMAND = [sys.executable, "-c", "from sweeps.cli import main; main()"]
SWEEP = """
model: demo
task: {type: causal_lm, prompt: "{record} ", response: "{sentence}"}
data: {train: demo, validation: demo, max_length: 64, subset: 16, validation_subset: 8}
space: {parameters: {adapter.r: {choices: [2, 4, 8, 16]}}}
budget: {n_trials: 3, max_samples: 16, num_rungs: 1}
"""
SIMULATED = "resources={engine: simulated, engine_options: {faults: {1: bug}, step_seconds: 0.2}}"


def canary(name: str) -> str:
    """A value that stands nowhere else; it survives URLs as it is."""
    return f"canary{name.replace('_', '').lower()}4f7a91c2"


SECRETS = {
    name: canary(name)
    for name in (
        *("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "OPENAI_API_KEY"),
        *("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "RAY_AUTH_TOKEN"),
        *("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"),
    )
}
IN_TRACKING, IN_STUDY, IN_USER = canary("tracking"), canary("study"), canary("user")


def needles() -> dict[str, list[bytes]]:
    """The forms in which each secret might lie somewhere."""
    found = {name: [value.encode()] for name, value in SECRETS.items()}
    found |= {"study_url": [IN_STUDY.encode()], "tracking.uri": [IN_TRACKING.encode()]}
    for name in ("MLFLOW_TRACKING_PASSWORD", "tracking.uri"):  # a header of basic authentication
        pair = b"%s:%s" % (IN_USER.encode(), found[name][0])
        found[name].append(base64.b64encode(pair))
    return found


@dataclass
class World:
    """A folder per thing that a command may write to, and what its processes were called."""

    folder: Path
    ray: Path
    command_lines: set[str] = field(default_factory=set)
    printed: list[bytes] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        study = f"sqlite:///file:{self.folder}/study.db?uri=true&password={IN_STUDY}"
        return {
            **os.environ,
            **SECRETS,
            "RAY_AUTH_MODE": "token",
            "MLFLOW_TRACKING_USERNAME": IN_USER,
            "PEFT_SWEEPS_STUDY_URL": study,
            "HOME": str(self.folder / "home"),
            "RAY_TMPDIR": str(self.ray),
            "HF_HUB_OFFLINE": "1",
        }

    def run(self, *words: str, timeout: float = 150) -> int:
        """Run a command; watch the command lines of all processes below it."""
        process = subprocess.Popen(
            [*COMMAND, *words],
            cwd=self.folder / "work",
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        watching = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(process.pid, watching))
        watcher.start()
        try:
            self.printed.append(process.communicate(timeout=timeout)[0])
        finally:
            watching.set()
            watcher.join()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        return process.returncode

    def _watch(self, pid: int, ended: threading.Event) -> None:
        while not ended.wait(0.1):
            with contextlib.suppress(psutil.Error):
                top = psutil.Process(pid)
                for process in (top, *top.children(recursive=True)):
                    with contextlib.suppress(psutil.Error):
                        self.command_lines.add(" ".join(process.cmdline()))

    def leaks(self) -> list[str]:
        """Where a secret was found, and which."""
        places: dict[str, bytes] = {
            str(path): path.read_bytes()
            for root in (self.folder, self.ray)
            for path in root.rglob("*")
            if path.is_file() and not path.is_symlink() and path.name != "waves.yaml"
        }
        assert len(places) > 20
        places |= {f"output {index}": text for index, text in enumerate(self.printed)}
        places |= {f"arguments: {line[:80]}": line.encode() for line in self.command_lines}
        return [
            f"{name} in {place}"
            for place, content in places.items()
            for name, forms in needles().items()
            if any(form in content for form in forms)
        ]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    for name in ("work", "home"):
        (tmp_path / name).mkdir()
    ray = Path(tempfile.mkdtemp(prefix="rs"))  # short: sockets lie in it
    yield World(tmp_path, ray)
    shutil.rmtree(ray, ignore_errors=True)


@pytest.fixture
def tracked(world: World) -> Iterator[World]:
    """With a sweep file that names a server, and the password for it."""
    (world.folder / "server").mkdir()
    server = Server(world.folder / "server", free_port())
    try:
        server.start()
        authority = f"{IN_USER}:{IN_TRACKING}@127.0.0.1:{server.port}"
        sweep = {**yaml.safe_load(SWEEP), "tracking": {"uri": f"http://{authority}"}}
        (world.folder / "work" / "waves.yaml").write_text(yaml.safe_dump(sweep))
        yield world
    finally:
        server.stop()


def test_a_sweep_on_ray_leaks_no_secret(tracked: World) -> None:
    assert tracked.run("run", "waves.yaml", SIMULATED) == 0, tracked.printed
    assert tracked.run("show", "waves", "1") == 0
    assert tracked.run("leaderboard", "waves", "--html", "board.html") == 0
    trials = tracked.folder / "work" / "runs" / "waves" / "trials"
    assert list(trials.rglob("traceback.txt"))
    assert (tracked.folder / "study.db").stat().st_size > 10_000
    assert list((tracked.folder / "server").rglob("trial.json"))
    assert list(tracked.ray.rglob("*.log")), "Ray's session folder lies elsewhere"
    assert any("raylet" in line for line in tracked.command_lines)
    assert tracked.leaks() == []


@pytest.mark.slow
def test_a_trained_and_exported_trial_leaks_no_secret(tracked: World) -> None:
    assert tracked.run("run", "waves.yaml", "--inline", "budget.n_trials=1") == 0, tracked.printed
    assert tracked.run("export", "waves") == 0, tracked.printed
    assert list(tracked.folder.rglob("exports/*/README.md"))
    assert tracked.leaks() == []


def test_the_search_finds_what_is_planted(world: World) -> None:
    (world.folder / "work" / "plain.log").write_text(f"token={SECRETS['HF_TOKEN']}")
    header = base64.b64encode(f"{IN_USER}:{IN_TRACKING}".encode())
    (world.folder / "work" / "header.bin").write_bytes(b"\x00Basic " + header)
    for number in range(20):
        (world.folder / "work" / f"{number}.txt").touch()
    world.printed.append(IN_STUDY.encode())
    assert sorted(leak.partition(" in ")[0] for leak in world.leaks()) == [
        "HF_TOKEN",
        "study_url",
        "tracking.uri",
    ]
