"""A real MLflow server for the module that asks for one, and eyes to see what a store holds."""

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from sweeps.tracking.ui import ui_command


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Server:
    """An MLflow server in a process group of its own."""

    storage: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command, environment = ui_command(self.storage, port=self.port)
        with (self.storage / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=1):
                    return
            except OSError:
                assert self.process.poll() is None, (self.storage / "server.log").read_text()
                time.sleep(0.1)
        raise TimeoutError((self.storage / "server.log").read_text())

    def stop(self, with_signal: signal.Signals = signal.SIGTERM) -> None:
        if self.process:
            os.killpg(self.process.pid, with_signal)
            self.process.wait(20)
            self.process = None


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An MLflow server that runs."""
    server = Server(tmp_path_factory.mktemp("server"), free_port())
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Server]:
    """An MLflow server that the test starts and kills as it likes."""
    (tmp_path / "server").mkdir()
    server = Server(tmp_path / "server", free_port())
    try:
        yield server
    finally:
        server.stop()


class Gate:
    """A port at which nobody listens until `open` forwards it to a server."""

    def __init__(self, target_port: int) -> None:
        self.port = free_port()
        self._target = ("127.0.0.1", target_port)
        self._listener: socket.socket | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def open(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def close(self) -> None:
        if self._listener:
            self._listener.close()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:  # closed
                return
            upstream = socket.create_connection(self._target)
            for source, sink in ((client, upstream), (upstream, client)):
                threading.Thread(target=_pump, args=(source, sink), daemon=True).start()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


@pytest.fixture
def gate(server: Server) -> Iterator[Gate]:
    """The way to `server`, closed at first: connections are refused."""
    gate = Gate(server.port)
    yield gate
    gate.close()


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Tracking URI of one SQLite store; each test has its own experiment in it."""
    return f"sqlite:///{tmp_path_factory.mktemp('storage') / 'mlflow.db'}"


class Store:
    """What an MLflow store holds in one experiment."""

    def __init__(self, tracking_uri: str, experiment: str) -> None:
        self.client = MlflowClient(tracking_uri)
        found = self.client.get_experiment_by_name(experiment)
        assert found is not None
        self.experiment = found
        self.runs = list(self.client.search_runs([found.experiment_id], max_results=5000))

    @property
    def parent(self) -> Run:
        (run,) = [run for run in self.runs if "mlflow.parentRunId" not in run.data.tags]
        return run

    @property
    def children(self) -> dict[int, Run]:
        children = [run for run in self.runs if "mlflow.parentRunId" in run.data.tags]
        by_number = {int(run.data.tags["trial.number"]): run for run in children}
        assert len(by_number) == len(children), "a trial has two runs"
        return by_number

    def points(self, run: Run, metric: str) -> list[tuple[int, float]]:
        history = self.client.get_metric_history(run.info.run_id, metric)
        return sorted((point.step, point.value) for point in history)

    def artifacts(self, run: Run, folder: str = "") -> set[str]:
        found: set[str] = set()
        for info in self.client.list_artifacts(run.info.run_id, folder or None):
            found |= self.artifacts(run, info.path) if info.is_dir else {info.path}
        return found


@pytest.fixture
def look() -> type[Store]:
    """Opens a store: `look(tracking_uri, experiment)`."""
    return Store
