"""Drivers in processes of their own and Ray nodes on this machine, started and stopped by pid."""

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

from sweeps.study.database import open_storage
from tests.support.fork_server import ForkedProcess, fork_server
from tests.support.mlflow_database import lay_out

HANG_SECONDS = 240.0
"""Nothing takes so long, however busy the machine is: it hangs. Below pytest's own `timeout`."""
PROXY, HOST = "ray::TrialProxy.train", "ray::HostActor"
"""How Ray titles its workers' processes; a proxy that has a trial."""

_DRIVER = """
import json, logging, sys
from sweeps import build_sweep, run
logging.getLogger("sweeps").setLevel(logging.INFO)
logging.basicConfig()
from sweeps.backends.ray import hangs
run.FLUSH_SECONDS, hangs.SILENT_SECONDS = map(float, sys.argv[2:])
outcome = run.launch(build_sweep(json.load(open(sys.argv[1]))))
print("status:", outcome.status, outcome.reason)
"""
"""A driver without its supervisor."""

_HEAD_OPTIONS = (
    "--head",
    "--include-dashboard=false",
    "--disable-usage-stats",
    "--node-ip-address=127.0.0.1",
)
_QUICK = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 3,
}
"""A dead node is seen in 2 to 3 seconds, instead of 15."""


def wait_for(condition: Callable[[], Any], timeout: float = HANG_SECONDS) -> Any:
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


def _runs(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Launched:
    """A driver in a process group of its own; sees its processes and its study."""

    tree: dict[str, Any]
    process: ForkedProcess
    output: Path
    seen: dict[int, psutil.Process] = field(default_factory=dict)
    study: optuna.Study | None = None

    def look(self) -> list[psutil.Process]:
        """The driver's descendants; all that were ever seen are remembered."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in psutil.Process(self.process.pid).children(recursive=True):
                self.seen.setdefault(process.pid, process)
        return [p for p in self.seen.values() if _runs(p)]

    def part(self, word: str) -> psutil.Process:
        """The one process below the driver with this word in its command line or as its name."""
        (found,) = [p for p in self.look() if p.name() == word or word in p.cmdline()]
        return found

    def alive(self) -> list[str]:
        """What still runs of all that was ever seen."""
        return [f"{p.pid} {p.name()}" for p in self.seen.values() if _runs(p)]

    def trials(self) -> list[optuna.trial.FrozenTrial]:
        """The study as it stands; none before the driver has opened it."""
        storage, name = Path(self.tree["storage"]), self.tree["name"]
        url = self.tree.get("study_url")
        if url is None and not (storage / name / "sweep.json").exists():
            return []
        if self.study is None:
            database = open_storage(url or f"sqlite:///{storage / 'optuna.db'}")
            with contextlib.suppress(KeyError):  # its driver has not come so far
                self.study = optuna.load_study(study_name=name, storage=database)
        return [] if self.study is None else self.study.get_trials()

    def reported(self, count: int = 1) -> bool:
        """Whether that many trials run and have left a checkpoint."""
        self.look()
        running = [t for t in self.trials() if t.state.name == "RUNNING"]
        return sum("checkpoint" in t.user_attrs for t in running) >= count

    def finish(self, timeout: float = HANG_SECONDS) -> str:
        """Wait for the driver's end and return what it printed."""
        deadline = time.monotonic() + timeout
        while self.process.poll() is None and time.monotonic() < deadline:
            self.look()
            time.sleep(0.05)
        self.process.wait(0.1)
        return self.output.read_text()


@contextlib.contextmanager
def drivers(folder: Path) -> Iterator[Callable[..., Launched]]:
    """Sweep file mapping -> its driver, launched; all processes are gone at the end.

    `fault` is what `peft_jobs.faults` does in it and in what it starts. `supervised` runs the
    command line, whose driver is a child of the process that is launched.
    """
    launched: list[Launched] = []

    def start(
        tree: dict[str, Any],
        fault: dict[str, Any] | None = None,
        flush_seconds: float = 30.0,
        supervised: bool = False,
        silent_seconds: float = 60.0,
    ) -> Launched:
        number = len(launched)
        if tree.get("tracking") is None:
            lay_out(Path(tree["storage"]))
        (folder / f"sweep-{number}.json").write_text(json.dumps(tree))
        output = folder / f"driver-{number}.txt"
        environment = {**os.environ}
        if fault is not None:
            environment["PEFT_SWEEPS_FAULT"] = json.dumps(fault)
        file = str(folder / f"sweep-{number}.json")
        arguments = ["-c", _DRIVER, file, str(flush_seconds), str(silent_seconds)]
        if supervised:
            arguments = ["-m", "sweeps.cli", "run", file, "--plain"]
        process = fork_server().start(arguments, output, environment)
        launched.append(Launched(tree, process, output))
        return launched[-1]

    try:
        yield start
    finally:
        for one in launched:
            one.look()
            with contextlib.suppress(ProcessLookupError):
                os.kill(one.process.pid, signal.SIGKILL)
            for process in one.seen.values():
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            one.process.wait(10)


@dataclass
class Node:
    """A Ray node that runs, by `ray start --block`."""

    address: str
    process: psutil.Process

    @property
    def id(self) -> str:
        """As Ray knows the node."""
        (found,) = [a for a in self.part("raylet").cmdline() if a.startswith("--node_id=")]
        return found.removeprefix("--node_id=")

    def workers(self, title: str) -> list[psutil.Process]:
        """The node's workers whose process title begins so; none of a dead node."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return titled(self.process.children(recursive=True), title)
        return []

    def part(self, name: str) -> psutil.Process:
        """One of Ray's own processes: `raylet`, `gcs_server`."""
        (found,) = [p for p in self.process.children(recursive=True) if p.name() == name]
        return found

    def drain(self, seconds: int) -> None:
        """Announce that it will be taken away, as a spot market or an autoscaler does."""
        command = [
            str(Path(sys.executable).parent / "ray"),
            "drain-node",
            f"--address={self.address}",
            f"--node-id={self.id}",
            "--reason=DRAIN_NODE_REASON_PREEMPTION",
            "--reason-message=spot instance",
            f"--deadline-remaining-seconds={seconds}",
        ]
        subprocess.run(command, check=True, capture_output=True, timeout=60)

    def kill(self) -> None:
        """kill -9 of all of the node's processes at once, as when its machine dies."""
        processes = [self.process, *self.process.children(recursive=True)]
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()  # none sees another one die
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


@contextlib.contextmanager
def ray_node(
    folder: Path,
    *options: str,
    address: str | None = None,
    port: int | None = None,
    **environment: str,
) -> Iterator[Node]:
    """A Ray node, in a process group of its own, killed at the end.

    The head of a new cluster (at `port`), or one that joins the cluster at `address`. `environment`
    is added to that of this process.
    """
    if address is None:
        address = f"127.0.0.1:{port or free_port()}"
        at = f"--port={address.rpartition(':')[2]}"
        own = [*_HEAD_OPTIONS, at, f"--system-config={json.dumps(_QUICK)}"]
    else:
        own = [f"--address={address}"]
    command = [str(Path(sys.executable).parent / "ray"), "start", "--block", *own, *options]
    # As this process speaks: a token in the home directory would switch authentication on.
    environment = {"RAY_AUTH_MODE": "disabled", **os.environ, **environment}
    if not environment.get("CUDA_VISIBLE_DEVICES"):  # Ray starts no pretended GPUs with it
        environment.pop("CUDA_VISIBLE_DEVICES", None)
    with (folder / "ray-start.log").open("w") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=environment, start_new_session=True
        )
    found: dict[int, psutil.Process] = {}
    try:
        wait_for(lambda: "Ray runtime started" in (folder / "ray-start.log").read_text())
        node = Node(address, psutil.Process(process.pid))
        found = {child.pid: child for child in node.process.children(recursive=True)}
        yield node
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
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
