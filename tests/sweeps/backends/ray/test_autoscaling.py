"""Sweeps on a cluster whose nodes Ray's own autoscaler adds and takes away."""

import json
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ray._private.ray_constants import AUTOSCALER_RESOURCE_REQUEST_CHANNEL
from ray._raylet import GcsClient
from ray.core.generated.gcs_pb2 import GcsNodeInfo  # type: ignore[attr-defined]

from sweeps import SweepSpec
from tests.support.ray_nodes import Launched, Node, free_port, ray_node, wait_for

pytestmark = pytest.mark.slow
Sweep = Callable[..., SweepSpec]
Drive = Callable[..., Launched]

ALIVE = GcsNodeInfo.GcsNodeState.ALIVE
COMMANDS = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray")


def autoscaling(gcs: str) -> dict[str, Any]:
    """A head without trials and up to two nodes with a core each, gone when idle for 6 seconds."""
    provider = {"type": "fake_multinode", "gcs_address": gcs, "launch_multiple": True}
    return {
        "cluster_name": "pretend",
        "max_workers": 2,
        "upscaling_speed": 10.0,
        "idle_timeout_minutes": 0.1,
        "provider": {**provider, "disable_node_updaters": True, "use_node_id_as_ip": True},
        "head_node_type": "ray.head.default",  # as Ray's pretend provider calls it
        "available_node_types": {
            "ray.head.default": {"resources": {}, "node_config": {}, "max_workers": 0},
            "one-core": {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 2},
        },
        **{f"{name}_commands": [] for name in (*COMMANDS, "worker_start_ray")},
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
    }


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A cluster with an autoscaler and no node but its head."""
    folder, port = tmp_path_factory.mktemp("head"), free_port()
    config = folder / "autoscaling.json"
    config.write_text(json.dumps(autoscaling(f"127.0.0.1:{port}")))
    environment = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    options = ("--num-cpus=0", f"--autoscaling-config={config}")
    with ray_node(folder, *options, port=port, **environment) as head:
        yield head


def workers(head: Node) -> int:
    """How many nodes live, besides the head."""
    nodes = GcsClient(head.address).get_all_node_info().values()
    return len([node for node in nodes if node.state == ALIVE]) - 1


def on(head: Node, **more: Any) -> dict[str, Any]:
    options = {"num_slots": 1, "step_seconds": 0.03}
    return {"backend": "ray", "address": head.address, "engine_options": options, **more}


def wish(head: Node) -> list[dict[str, float]]:
    """What the cluster's autoscaler is asked for just now."""
    told = GcsClient(head.address).internal_kv_get(AUTOSCALER_RESOURCE_REQUEST_CHANNEL, None)
    return list(json.loads(told or b"[]"))


def test_a_sweep_gets_the_nodes_it_can_use_and_gives_them_back(
    drive: Drive, sweep: Sweep, head: Node
) -> None:
    assert not workers(head)
    budget = {"n_trials": 8, "max_samples": 600}
    resources = on(head, max_concurrent=4)
    spec = sweep(resources=resources, budget=budget, pruner="none", sampler="random")
    driver = drive(spec.model_dump(mode="json"))
    wishes = [0]
    while driver.process.poll() is None:
        driver.look()
        if len(bundles := wish(head)) != wishes[-1]:
            assert all(bundle == {"CPU": 1} for bundle in bundles)
            wishes.append(len(bundles))
        time.sleep(0.1)
    output = driver.finish()
    assert "status: complete" in output
    assert [trial.state.name for trial in driver.trials()] == ["COMPLETE"] * 8
    assert len(set(re.findall("is on peft-sweeps-host-([0-9a-f]+)-cpu", output))) == 2
    assert wishes[:3] == [0, 1, 4]  # the first trial goes ahead alone
    assert wishes[2:] == sorted(wishes[2:], reverse=True)
    assert wishes[-1] == 0
    wait_for(lambda: not workers(head), 60)


def test_a_sweep_stops_while_it_waits_for_a_node(drive: Drive, sweep: Sweep, head: Node) -> None:
    spec = sweep(resources=on(head, cpus_per_trial=7))  # no type of node has so many
    driver = drive(spec.model_dump(mode="json"), supervised=True)
    wait_for(lambda: driver.look() and wish(head) == [{"CPU": 7}], 60)
    driver.process.send_signal(signal.SIGTERM)
    driver.finish(30)
    wait_for(lambda: wish(head) == [], 10)
    assert "no node of the cluster" not in driver.output.read_text()


@pytest.mark.parametrize("version", ["0", "1"], ids=["v1", "v2"])
def test_a_cluster_that_does_not_grow_is_told_at_once(
    sweep: Sweep, drive: Drive, tmp_path: Path, version: str
) -> None:
    with ray_node(tmp_path, "--num-cpus=1", RAY_enable_autoscaler_v2=version) as head:
        spec = sweep(resources=on(head, cpus_per_trial=7))
        driver = drive(spec.model_dump(mode="json"))
        assert "no node of the cluster has 7 cores and 0 GPUs" in driver.finish(45)
