"""The cluster's nodes: which live, which are about to go, and which devices of theirs serve."""

import math
import os
from dataclasses import dataclass
from typing import Any

import ray
from ray._private.state import actors, state

from sweeps.spec import ResourcesSpec


def host_name(node_id: str, gpu: str | None) -> str:
    """The name under which a proxy finds the host of its device."""
    return f"peft-sweeps-host-{node_id}-{'cpu' if gpu is None else gpu}"


@dataclass(frozen=True)
class Place:
    """A device that one host serves; `cores` are its share of the node's."""

    node_id: str
    gpu: str | None
    cores: int

    @property
    def name(self) -> str:
        return host_name(self.node_id, self.gpu)


@dataclass(frozen=True)
class Share:
    """What one trial holds in Ray's books."""

    cpus: float
    gpus: float


def alive_nodes() -> list[dict[str, Any]]:
    """The nodes that live. RuntimeError if this process's own is not among them.

    A driver whose own node is dead would wait for ever: Ray 2.60 does not end it.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    if ray.get_runtime_context().get_node_id() not in {node["NodeID"] for node in nodes}:
        raise RuntimeError("the Ray node of this driver has died")
    return nodes


def draining_nodes() -> set[str]:
    """Ids of the nodes that are about to be taken away (`ray drain-node`, a spot instance)."""
    return set(state.get_draining_nodes())


def dead_actors() -> set[str]:
    """Ids of this driver's actors that Ray has given up."""
    job = ray.JobID.from_hex(ray.get_runtime_context().get_job_id())
    return set(actors(job_id=job, actor_state_name="DEAD"))


def share_of(resources: ResourcesSpec, nodes: list[dict[str, Any]]) -> Share:
    """Cores and GPUs per trial; `auto` shares a GPU, or a node without any, between its slots."""
    with_gpus = [node["Resources"] for node in nodes if node["Resources"].get("GPU")]
    gpus = resources.gpus_per_trial
    if gpus == "auto":
        gpus = 1.0 / resources.slots if with_gpus else 0.0
    cpus = resources.cpus_per_trial
    if cpus == "auto":
        if gpus:
            per_gpu = [have.get("CPU", 1) / have["GPU"] for have in with_gpus]
            cpus = max(0.1, min(per_gpu, default=1.0) * gpus)
        else:
            cores = [node["Resources"].get("CPU", 0) for node in nodes]
            cpus = min((count for count in cores if count), default=1.0) / resources.slots
    return Share(_floor(float(cpus)), _floor(float(gpus)))


def _floor(amount: float) -> float:
    """Ray keeps books in ten-thousandths; slots must not be lost to rounding up."""
    return math.floor(amount * 10_000) / 10_000


def places_of(nodes: list[dict[str, Any]], share: Share) -> list[Place]:
    """Where hosts belong: every GPU if trials hold GPUs, otherwise every node with enough cores."""
    places = []
    here = ray.get_runtime_context().get_node_id()
    for node in nodes:
        have = node["Resources"]
        cores = int(have.get("CPU", 0))
        if not share.gpus:
            if cores >= share.cpus:
                places.append(Place(node["NodeID"], None, max(1, cores)))
            continue
        ids = [str(index) for index in range(int(have.get("GPU", 0)))]
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if node["NodeID"] == here and visible and len(visible.split(",")) == len(ids):
            ids = visible.split(",")  # this node's raylet numbers its GPUs as this process does
        places += [Place(node["NodeID"], gpu, max(1, cores // len(ids))) for gpu in ids]
    return places
