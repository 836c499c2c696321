"""A whole cluster on this machine, whose nodes share no disk.

PostgreSQL, MLflow behind its server, an S3-compatible store, a Ray head that runs no trials, and
nodes with two pretend GPUs each that come and go in the middle of sweeps.
"""

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from sweeps.cli.exit_codes import ExitCode
from tests.support.breaking import sweep_tree
from tests.support.left_behind import TrialRecord, disagreements, parent_runs
from tests.support.left_in_services import read
from tests.support.mlflow_server import Server
from tests.support.object_store import ObjectStore, object_store
from tests.support.postgres import Postgres, postgres
from tests.support.ray_nodes import Launched, Node, free_port, ray_node, wait_for

Drive = Callable[..., Launched]
GPUS = 2


@dataclass
class Cluster:
    """The services, the head, and the nodes that have joined it so far."""

    folder: Path
    head: Node
    postgres: Postgres
    store: ObjectStore
    mlflow: Server
    nodes: contextlib.ExitStack
    count: int = 0
    live: list[Node] = field(default_factory=list)

    def join(self) -> Node:
        """A node with two pretend GPUs and a disk of its own joins."""
        self.count += 1
        folder = self.folder / f"node-{self.count}"
        folder.mkdir()
        node = self.nodes.enter_context(
            ray_node(
                folder,
                "--num-cpus=2",
                f"--num-gpus={GPUS}",
                address=self.head.address,
                PEFT_SWEEPS_STAGING=str(folder / "staging"),
            )
        )
        self.live.append(node)
        return node

    def tree(self, name: str, **sections: Any) -> dict[str, Any]:
        """A sweep file's mapping: simulated trials of 75 steps, one on each GPU."""
        resources = {
            "engine_options": {"num_slots": 1, "step_seconds": 0.03},
            "cpus_per_trial": 0.5,
            "gpus_per_trial": 1,
            "max_concurrent": None,
            **sections.pop("resources", {}),
        }
        given = {
            "name": name,
            "study_url": self.postgres.url,
            "tracking": {"uri": self.mlflow.url},
            "resources": resources,
            "sampler": "random",
            "pruner": "none",
            "budget": {"n_trials": 8, "max_samples": 600},
            **sections,
        }
        return {**sweep_tree(self.folder, self.head.address, **given), "storage": self.store.url}

    def records(self, name: str) -> dict[int, TrialRecord]:
        return read(self.postgres.url, self.store, self.mlflow.storage / "mlflow.db", name)

    def check_whole(self, name: str, n_trials: int) -> None:
        """Each trial ended once, and study, objects and MLflow tell the same of it."""
        found = {n: r for n, r in self.records(name).items() if r.counts}
        assert len(found) == n_trials
        assert disagreements(found) == []
        assert parent_runs(self.mlflow.storage / "mlflow.db", name) == ["FINISHED"]
        keys = self.store.keys(f"{name}/")
        assert not [key for key in keys if "/checkpoints/" in key], "nothing continues from them"
        whole = {"sweep.json", "leaderboard.json", "leaderboard.csv", "leaderboard.html"}
        assert {f"{name}/{file}" for file in whole} <= set(keys)
        board = json.loads(self.store.read(f"{name}/leaderboard.json"))
        assert len(board["rows"]) == n_trials


@pytest.fixture(scope="module")
def services(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Postgres, ObjectStore, Server]]:
    folder = tmp_path_factory.mktemp("services")
    server = Server(folder, free_port())
    try:
        with postgres() as database, object_store(folder) as store:
            server.start()
            yield database, store, server
    finally:
        server.stop()


@pytest.fixture
def cluster(tmp_path: Path, services: tuple[Postgres, ObjectStore, Server]) -> Iterator[Cluster]:
    """A cluster whose head has no cores for trials; no other node has joined yet."""
    (tmp_path / "head").mkdir()
    here = {"PEFT_SWEEPS_STAGING": str(tmp_path / "here")}
    with (
        patch.dict(os.environ, here),
        ray_node(tmp_path / "head", "--num-cpus=0") as head,
        contextlib.ExitStack() as nodes,
    ):
        yield Cluster(tmp_path, head, *services, nodes)


def nodes_of(driver: Launched) -> dict[int, list[str]]:
    """Trial -> the nodes on which it was heard of, in order, as the driver's log says."""
    found: dict[int, list[str]] = {}
    told = r"trial (\d+): attempt \d+ is on peft-sweeps-host-([0-9a-f]+)-\d"
    for number, node in re.findall(told, driver.output.read_text()):
        found.setdefault(int(number), []).append(node)
    return found


def on(node: Node, driver: Launched) -> list[int]:
    """Trials that run and were last heard of on this node."""
    places = nodes_of(driver)
    running = [t.number for t in driver.trials() if t.state.name == "RUNNING"]
    return [number for number in running if places.get(number, [""])[-1] == node.id]


@pytest.mark.slow
def test_a_sweep_uses_all_gpus_of_all_nodes_and_its_records_are_whole(
    cluster: Cluster, drive: Drive
) -> None:
    nodes = [cluster.join(), cluster.join()]
    tree = cluster.tree("spread", budget={"n_trials": 12, "max_samples": 600})
    tree["resources"]["engine_options"]["step_seconds"] = 0.2  # longer than a host takes to start
    driver = drive(tree)
    assert "status: complete" in driver.finish(180)
    cluster.check_whole("spread", 12)
    places = nodes_of(driver)
    assert {number: len(found) for number, found in places.items()} == dict.fromkeys(range(12), 1)
    assert {node for found in places.values() for node in found} == {node.id for node in nodes}
    used = Counter(
        (places[t.number][0], t.user_attrs["result"]["provenance"]["visible_devices"])
        for t in driver.trials()
    )
    assert set(used) == {(node.id, str(gpu)) for node in nodes for gpu in range(GPUS)}
    left = [p for n in range(1, 3) for p in (cluster.folder / f"node-{n}" / "staging").rglob("*")]
    assert not [path for path in left if path.is_file()], "what the store has needs no room there"


@pytest.mark.slow
def test_a_node_that_sees_another_store_ends_the_sweep(cluster: Cluster, drive: Drive) -> None:
    here = dict(os.environ)
    with object_store(cluster.folder) as other:
        assert other.environment["AWS_ENDPOINT_URL"] != here["AWS_ENDPOINT_URL"]
        cluster.join()
        with patch.dict(os.environ, here):
            driver = drive(cluster.tree("apart"), supervised=True)
            told = " ".join(driver.finish(240).split())
    assert driver.process.returncode == ExitCode.BAD_INPUT
    assert "storage: must be a path that all nodes share" in told
    assert f"{cluster.store.url}/apart/.driver and found nothing" in told
    assert "Traceback" not in told


@pytest.mark.slow
def test_nodes_die_are_taken_away_and_join_in_the_middle_of_a_sweep(
    cluster: Cluster, drive: Drive
) -> None:
    first, second = cluster.join(), cluster.join()
    ids = [first.id, second.id]
    tree = cluster.tree("restless", budget={"n_trials": 10, "max_samples": 1200})
    tree["resources"]["engine_options"]["step_seconds"] = 0.15
    driver = drive(tree)
    wait_for(lambda: len(on(first, driver)) == len(on(second, driver)) == GPUS)
    wait_for(lambda: driver.reported(4))

    died = on(first, driver)
    first.kill()
    third = cluster.join()
    ids.append(third.id)
    wait_for(lambda: on(third, driver))
    wait_for(lambda: all(driver.trials()[n].user_attrs["attempt"] >= 2 for n in died))

    wait_for(lambda: len(on(second, driver)) == GPUS)
    leaving = on(second, driver)
    before = {n: driver.trials()[n].user_attrs.get("checkpoint") for n in leaving}
    second.drain(60)
    wait_for(lambda: all(_has_moved_on(driver, n, before[n]) for n in leaving), 30)
    second.kill()
    driver.finish(180)
    assert "status: complete" in driver.output.read_text()
    cluster.check_whole("restless", 10)
    places = nodes_of(driver)
    for number in died:
        assert places[number][0] == ids[0]
        assert places[number][-1] in ids[1:]
    resumed = [
        driver.trials()[n].user_attrs["result"]["provenance"]["resumed_from"]
        for n in {*died, *leaving}
        if driver.trials()[n].user_attrs["attempt"] > 1
    ]
    assert resumed
    assert min(resumed) > 0, "nobody starts at the first step: the store had their checkpoints"


def _has_moved_on(driver: Launched, number: int, before: str | None) -> bool:
    """Whether a trial has ended, or left a checkpoint since."""
    trial = driver.trials()[number]
    return trial.state.is_finished() or trial.user_attrs.get("checkpoint") != before


@pytest.mark.slow
def test_a_database_that_dies_and_comes_back_loses_nothing(cluster: Cluster, drive: Drive) -> None:
    cluster.join()
    driver = drive(cluster.tree("database"))
    for _ in range(2):
        wait_for(lambda: driver.reported(1))
        before = len([t for t in driver.trials() if t.state.is_finished()])
        cluster.postgres.kill()
        time.sleep(5)
        cluster.postgres.start()
        driver.study = None  # this process's connections are dead too
        wait_for(lambda n=before: len([t for t in driver.trials() if t.state.is_finished()]) > n)
    assert "status: complete" in driver.finish()
    cluster.check_whole("database", 8)
    assert {t.user_attrs["attempt"] for t in driver.trials()} == {1}


@pytest.mark.slow
def test_a_store_that_goes_away_and_comes_back_loses_nothing(
    cluster: Cluster, drive: Drive
) -> None:
    cluster.join()
    driver = drive(cluster.tree("store"))
    wait_for(lambda: driver.reported(1))
    cluster.store.gate.close()
    try:
        ended = sum(t.state.is_finished() for t in driver.trials())
        time.sleep(6)
        assert sum(t.state.is_finished() for t in driver.trials()) <= ended + GPUS
    finally:
        cluster.store.gate.open()
    assert "status: complete" in driver.finish()
    cluster.check_whole("store", 8)


@pytest.mark.slow
def test_the_next_driver_may_run_on_another_machine(
    cluster: Cluster, drive: Drive, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.join()
    tree = cluster.tree("moved")
    first = drive(tree)
    wait_for(lambda: first.reported(2) and any(t.state.is_finished() for t in first.trials()))
    first.process.kill()
    first.process.wait(10)
    monkeypatch.setenv("PEFT_SWEEPS_STAGING", str(cluster.folder / "elsewhere"))
    second = drive(tree)
    assert "status: complete" in second.finish()
    cluster.check_whole("moved", 8)
    attempts = [t.user_attrs["attempt"] for t in second.trials()]
    assert max(attempts) == 2


_METRIC = """
def where(model, tokenizer, rows):
    return {"sent_by_ray": float("py_modules" in __file__)}
"""


def _rows() -> Iterator[dict[str, str]]:
    for number in range(60):
        yield {"question": f"{number} and one?", "answer": str(number + 1)}


@pytest.mark.slow
def test_a_real_sweep_reaches_nodes_that_share_no_disk_and_is_read_from_another_machine(
    cluster: Cluster, drive: Drive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its data and its metric are files of the driver's machine."""
    cluster.join()
    cluster.join()
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in _rows()))
    (tmp_path / "own_metric.py").write_text(_METRIC)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    tree = cluster.tree(
        "real",
        resources={
            "engine": "solo",
            "engine_options": {},
            "cpus_per_trial": 1,
            "gpus_per_trial": 0,
        },
        budget={"n_trials": 4, "max_samples": 64},
        evaluation={"metrics": ["own_metric:where"]},
    )
    tree["data"] = {"train": str(tmp_path / "rows.jsonl"), "validation": 0.2}
    tree["task"] = {"type": "causal_lm", "prompt": "{question} ", "response": "{answer}"}
    driver = drive(tree)
    assert "status: complete" in driver.finish(280)
    cluster.check_whole("real", 4)
    keys = cluster.store.keys("real/")
    (data,) = [key for key in keys if key.startswith("real/inputs/rows-")]
    trial = json.loads(cluster.store.read("real/trials/0000/trial.json"))
    assert trial["data"]["train"]["path"] == f"{cluster.store.url}/{data}"
    for found in driver.trials():
        assert found.user_attrs["result"]["metrics"]["validation/sent_by_ray"] == 1.0
    for number in range(4):
        below = f"real/trials/{number:04d}/attempts/1"
        assert {f"{below}/adapter/adapter_model.safetensors", f"{below}/log.txt"} <= set(keys)
        assert f"{below}/rows.parquet" in keys
    uploaded = {p.name for p in (cluster.mlflow.storage / "mlartifacts").rglob("*") if p.is_file()}
    assert {"adapter_model.safetensors", "result.json", "log.txt", "metrics.jsonl"} <= uploaded
    assert "rows.parquet" in uploaded

    def other_machine(*words: str) -> Any:
        where = ["--storage", cluster.store.url, "--json"]
        environment = {
            **os.environ,
            "PEFT_SWEEPS_STAGING": str(tmp_path / "other"),
            "PEFT_SWEEPS_STUDY_URL": cluster.postgres.url,
        }
        done = subprocess.run(
            [sys.executable, "-m", "sweeps.cli", *words, *where],
            capture_output=True,
            text=True,
            env=environment,
            cwd=tmp_path,
            timeout=200,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    assert [item["name"] for item in other_machine("list")] == sorted(
        {key.partition("/")[0] for key in cluster.store.keys("") if key.endswith("/sweep.json")}
    )
    assert other_machine("status", "real")["trials"]["COMPLETE"] == 4
    best = other_machine("leaderboard", "real")["rows"][0]
    shown = other_machine("show", "real", str(best["number"]))
    assert shown["files"]["adapter"] == f"{cluster.store.url}/real/{best['adapter']}"
    exported = other_machine("export", "real")
    assert (tmp_path / exported["path"] / "adapter_model.safetensors").is_file()
    assert exported["validation"]["validation/loss"] == pytest.approx(best["value"], rel=1e-5)
