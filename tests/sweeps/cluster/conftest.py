"""Real Ray: drivers in processes of their own, and clusters of this machine, stopped by pid."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest

from sweeps.database import open_storage

DRIVER = """
import json, sys
from sweeps import build_sweep
from sweeps.run import launch
outcome = launch(build_sweep(json.load(open(sys.argv[1]))))
print("status:", outcome.status, outcome.reason)
"""


def wait_for(condition: Callable[[], Any], timeout: float = 60.0) -> Any:
    """The first true value of `condition()`; TimeoutError after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    raise TimeoutError(f"waited {timeout:g} s for {condition}")


def titled(processes: list[psutil.Process], title: str) -> list[psutil.Process]:
    """Those of `processes` whose title begins so."""
    found = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.cmdline()[:1] and process.cmdline()[0].startswith(title):
                found.append(process)
    return found


@dataclass
class Launched:
    """A driver in a process group of its own; sees its processes and its study."""

    tree: dict[str, Any]
    process: subprocess.Popen[str]
    output: Path
    seen: dict[int, psutil.Process] = field(default_factory=dict)
    study: optuna.Study | None = None

    def look(self) -> list[psutil.Process]:
        """The driver's descendants; all that were ever seen are remembered."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in psutil.Process(self.process.pid).children(recursive=True):
                self.seen.setdefault(process.pid, process)
        return [p for p in self.seen.values() if p.is_running() and p.status() != "zombie"]

    def alive(self) -> list[str]:
        """What still runs of all that was ever seen."""
        found = []
        for process in self.seen.values():
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(f"{process.pid} {process.name()}")
        return found

    def trials(self) -> list[optuna.trial.FrozenTrial]:
        """The study as it stands; none before the driver has opened it."""
        storage, name = Path(self.tree["storage"]), self.tree["name"]
        if not (storage / name / "sweep.json").exists():
            return []
        if self.study is None:
            database = open_storage(f"sqlite:///{storage / 'optuna.db'}")
            self.study = optuna.load_study(study_name=name, storage=database)
        return self.study.get_trials()

    def reported(self, count: int = 1) -> bool:
        """Whether that many trials run and have left a checkpoint."""
        self.look()
        running = [t for t in self.trials() if t.state.name == "RUNNING"]
        return sum("checkpoint" in t.user_attrs for t in running) >= count

    def finish(self, timeout: float = 120.0) -> str:
        """Wait for the driver's end and return what it printed."""
        deadline = time.monotonic() + timeout
        while self.process.poll() is None and time.monotonic() < deadline:
            self.look()
            time.sleep(0.05)
        self.process.wait(0.1)
        return self.output.read_text()


@pytest.fixture(scope="session", name="wait_for")
def wait_for_fixture() -> Callable[..., Any]:
    """See `wait_for`."""
    return wait_for


@pytest.fixture
def drive(tmp_path: Path) -> Iterator[Callable[[dict[str, Any]], Launched]]:
    """Sweep file mapping -> its driver, launched; all processes are gone after the test."""
    launched: list[Launched] = []

    def start(tree: dict[str, Any]) -> Launched:
        number = len(launched)
        (tmp_path / f"sweep-{number}.json").write_text(json.dumps(tree))
        output = tmp_path / f"driver-{number}.txt"
        with output.open("w") as file:
            process = subprocess.Popen(
                [sys.executable, "-c", DRIVER, str(tmp_path / f"sweep-{number}.json")],
                stdout=file,
                stderr=file,
                text=True,
                start_new_session=True,
            )
        launched.append(Launched(tree, process, output))
        return launched[-1]

    yield start
    for one in launched:
        one.look()
        with contextlib.suppress(ProcessLookupError):
            os.kill(one.process.pid, signal.SIGKILL)
        for process in one.seen.values():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        one.process.wait(10)


_HEAD_OPTIONS = (
    "--include-dashboard=false",
    "--disable-usage-stats",
    "--node-ip-address=127.0.0.1",
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Cluster:
    """A Ray cluster that runs."""

    address: str
    head: psutil.Process

    def workers(self, title: str) -> list[psutil.Process]:
        """The head node's workers whose process title begins so."""
        return titled(self.head.children(recursive=True), title)


@contextlib.contextmanager
def ray_node(folder: Path, *options: str) -> Iterator[psutil.Process]:
    """A Ray node by `ray start --block`, in a process group of its own, killed at the end."""
    command = [str(Path(sys.executable).parent / "ray"), "start", "--block", *options]
    # As this process speaks: a token in the home directory would switch authentication on.
    environment = {"RAY_AUTH_MODE": "disabled", **os.environ}
    with (folder / "ray-start.log").open("a") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=environment, start_new_session=True
        )
    found: dict[int, psutil.Process] = {}
    try:
        wait_for(lambda: "Ray runtime started" in (folder / "ray-start.log").read_text())
        yield psutil.Process(process.pid)
    finally:
        for child in psutil.Process(process.pid).children(recursive=True):
            found[child.pid] = child
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        process.kill()
        for child in found.values():
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        process.wait(5)


@pytest.fixture(scope="module")
def one_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster of one node with two cores."""
    folder, port = tmp_path_factory.mktemp("ray"), free_port()
    with ray_node(folder, "--head", f"--port={port}", "--num-cpus=2", *_HEAD_OPTIONS) as head:
        yield Cluster(f"127.0.0.1:{port}", head)


@pytest.fixture(scope="module")
def two_gpus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster of one node with two cores and two pretend GPUs."""
    folder, port = tmp_path_factory.mktemp("ray"), free_port()
    options = ["--head", f"--port={port}", "--num-cpus=2", "--num-gpus=2", *_HEAD_OPTIONS]
    with ray_node(folder, *options) as head:
        yield Cluster(f"127.0.0.1:{port}", head)


@pytest.fixture(scope="module")
def two_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a cluster of two nodes with one core each."""
    folder, port = tmp_path_factory.mktemp("ray"), free_port()
    other = tmp_path_factory.mktemp("other")
    head = ["--head", f"--port={port}", "--num-cpus=1", *_HEAD_OPTIONS]
    with ray_node(folder, *head), ray_node(other, f"--address=127.0.0.1:{port}", "--num-cpus=1"):
        yield f"127.0.0.1:{port}"
