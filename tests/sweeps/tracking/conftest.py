"""A real MLflow server for the module that asks for one, and eyes to see what a store holds."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from tests.support.mlflow_server import Gate, Server
from tests.support.ray_nodes import free_port


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
