"""The compose file's commands and environment, run as processes of this machine: no containers.

What a container would change is replaced: host names, ports, paths, and RustFS by another store.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from mlflow import MlflowClient

from tests.infra.test_compose import SECRETS, read
from tests.support.documents import INFRA
from tests.support.object_store import ObjectStore, object_store
from tests.support.postgres import postgres
from tests.support.ray_nodes import free_port, ray_node

TOOLS = Path(sys.executable).parent
FOLDER = INFRA / "compose"
VALUES = {name: f"{name.lower().replace('_', '-')}-of-the-tests-0123456789" for name in SECRETS}
SWEEP = """
name: waves
model: demo
quantization: nf4
task: {type: causal_lm, prompt: "{record} ", response: "{sentence}"}
data: {train: rows.jsonl, validation: 0.2}
space: {parameters: {training.learning_rate: {low: 1.0e-4, high: 1.0e-2, log: true}}}
budget: {n_trials: 3, max_samples: 900, num_rungs: 0}
resources: {engine: simulated}
study_url: postgresql+psycopg:///optuna
"""


@dataclass
class Services:
    """What runs, as the compose file says."""

    compose: dict[str, Any]
    store: ObjectStore
    environment: dict[str, str]
    """Of all services: where the database and the store are here."""
    mlflow: str

    def variables(self, service: str) -> dict[str, str]:
        given = {k: str(v) for k, v in self.compose[service]["environment"].items()}
        return {**os.environ, **given, **self.environment}


@pytest.fixture
def services(tmp_path: Path) -> Iterator[Services]:
    rendered = read("compose.yaml", secrets=VALUES)
    compose = json.loads(rendered.stdout)["services"]
    (tmp_path / "store").mkdir()
    with object_store(tmp_path / "store") as store, postgres() as database:
        names = {"PGHOST": "127.0.0.1", "PGPORT": str(database.port), **store.environment}
        with psycopg.connect(database.url.replace("+psycopg", ""), autocommit=True) as connection:
            connection.execute("CREATE DATABASE optuna")  # as the image does for POSTGRES_DB
            connection.execute((FOLDER / "databases.sql").read_text())
        address = f"http://127.0.0.1:{free_port()}"
        found = Services(compose, store, names, address)
        _, script, *buckets = compose["buckets"]["entrypoint"]
        command = [sys.executable, str(FOLDER / Path(script).name), *buckets]
        for _ in range(2):
            assert subprocess.run(command, env=found.variables("buckets")).returncode == 0
        with mlflow_server(found, tmp_path):
            yield found


@contextlib.contextmanager
def mlflow_server(services: Services, folder: Path) -> Iterator[None]:
    accounts = (FOLDER / "mlflow-auth.ini").read_text().replace("/shared/", f"{folder}/")
    (folder / "auth.ini").write_text(accounts)
    port = services.mlflow.rpartition(":")[2]
    program, *words = services.compose["mlflow"]["entrypoint"]
    words = [word.replace("5000", port).replace("0.0.0.0", "127.0.0.1") for word in words]
    environment = services.variables("mlflow") | {
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini")
    }
    with (folder / "mlflow.log").open("w") as log:
        process = subprocess.Popen(
            [TOOLS / program, *words], env=environment, stdout=log, stderr=log, cwd=folder
        )
    try:
        deadline = time.monotonic() + 120
        while answer(f"{services.mlflow}/health") != 200:
            assert time.monotonic() < deadline, (folder / "mlflow.log").read_text()
            assert process.poll() is None, (folder / "mlflow.log").read_text()
            time.sleep(0.2)
        yield
    finally:
        process.terminate()
        process.wait(30)


def answer(url: str, **headers: str) -> int:
    """The status of a GET; 0 if nobody answers."""
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=10
        ) as got:
            return int(got.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


@pytest.mark.slow
def test_a_sweep_submitted_to_the_compose_files_services(
    services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    password = VALUES["MLFLOW_PASSWORD"]
    experiments = f"{services.mlflow}/api/2.0/mlflow/experiments/get?experiment_id=0"
    known = "Basic " + b64encode(f"admin:{password}".encode()).decode()
    assert answer(experiments) == 401
    assert answer(experiments, Authorization=known[:-4]) == 401
    assert answer(experiments, Authorization=known) == 200
    assert answer(experiments, Authorization=known, Host="evil.example") == 403

    (tmp_path / "waves.yaml").write_text(SWEEP)
    (tmp_path / "rows.jsonl").write_text('{"record": "a", "sentence": "b"}\n' * 10)
    ports = [free_port() for _ in range(4)]
    head = [w for w in services.compose["ray-head"]["entrypoint"] if w.startswith("--num-")]
    assert head == ["--num-cpus=0", "--num-gpus=0"]
    head += [f"--dashboard-port={ports[0]}", "--include-dashboard=true"]
    head += [f"--dashboard-agent-listen-port={ports[1]}", f"--ray-client-server-port={ports[2]}"]
    worker = ["--num-cpus=2", f"--dashboard-agent-listen-port={ports[3]}"]
    for folder in ("head", "worker"):
        (tmp_path / folder).mkdir()
    with contextlib.ExitStack() as cluster:
        scratch = [cluster.enter_context(tempfile.TemporaryDirectory(dir="/tmp")) for _ in "hw"]
        variables = services.variables("ray-head") | {"PATH": f"{TOOLS}:{os.environ['PATH']}"}
        with monkeypatch.context() as patched:
            for name, value in variables.items():
                patched.setenv(name, value)
            node = cluster.enter_context(
                ray_node(tmp_path / "head", *head, f"--temp-dir={scratch[0]}")
            )
            cluster.enter_context(
                ray_node(
                    tmp_path / "worker",
                    *worker,
                    f"--temp-dir={scratch[1]}",
                    address=node.address,
                )
            )
        submitted = peft_sweep(
            tmp_path,
            *("submit", "waves.yaml", f"storage={tmp_path / 'shared'}"),
            *(f"tracking.uri={services.mlflow}", "--address", f"http://127.0.0.1:{ports[0]}"),
        )
        assert submitted.returncode == 0, submitted.stderr
        address = ("--address", f"http://127.0.0.1:{ports[0]}")
        followed = peft_sweep(tmp_path, "logs", "waves", "--follow", *address)
        assert "done" in followed.stderr, followed.stdout
        status = peft_sweep(tmp_path, "status", "waves", "--json", *address)
        trials = json.loads(status.stdout)["status"]["trials"]
        assert trials["COMPLETE"] == 3

    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
    client = MlflowClient(services.mlflow)
    experiment = client.get_experiment_by_name("peft-sweeps")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) == 4, followed.stdout
    objects = services.store.client.list_objects_v2(Bucket="mlflow").get("Contents", [])
    keys = [item["Key"] for item in objects]
    assert any(key.endswith("leaderboard.csv") for key in keys), followed.stdout


def peft_sweep(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    """The command on a laptop that has the token, and no password."""
    hidden = ("PG", "AWS_", "MLFLOW_", "RAY_")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(hidden)}
    environment["RAY_AUTH_TOKEN"] = VALUES["RAY_AUTH_TOKEN"]
    return subprocess.run(
        [sys.executable, "-m", "sweeps.cli", *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
