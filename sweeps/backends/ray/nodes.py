"""The cluster's nodes: which live, which are about to go, and which devices of theirs serve."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray
from ray._private.state import actors, state

if TYPE_CHECKING:  # proxies import this module, and each is a process: without Optuna, please
    from sweeps.spec.resources import ResourcesSpec

_KIND = "accelerator_type:"
"""How Ray's names for kinds of GPUs begin."""


def host_name(node_id: str, gpus: str | None, part: int = 0) -> str:
    """The name under which a proxy finds the host of its device, see `NodeSlot`."""
    device = f"cpu{part or ''}" if gpus is None else gpus
    return f"peft-sweeps-host-{node_id}-{device}"


def own_gpus() -> str | None:
    """The GPUs that this worker holds, as in `NodeSlot.gpus`."""
    ids = [str(gpu) for gpu in ray.get_gpu_ids()]
    visible = ray._private.worker.global_worker.original_visible_accelerator_ids.get("GPU")
    if visible is not None:  # its node's raylet was shown some of the machine's GPUs only
        ids = [str(visible.index(gpu)) for gpu in ids]
    return ",".join(sorted(ids, key=int)) or None


@dataclass(frozen=True)
class NodeSlot:
    """A device, a group of GPUs, or a part of a node's cores, that one host serves; `cores` are its
    share of the node's."""

    node_id: str
    gpus: str | None
    """Which of those that the node's raylet sees: `0`, or `0,1` for a base on two of them."""
    cores: int
    kind: str = ""
    """Of its GPUs, see `kind_of`."""
    part: int = 0
    """Which of the hosts of a node without GPUs."""

    @property
    def name(self) -> str:
        return host_name(self.node_id, self.gpus, self.part)


@dataclass(frozen=True)
class Share:
    """What one trial holds in Ray's books."""

    cpus: float
    gpus: float
    accelerator: str | None = None
    """Ray's name of the kind of GPU, if it must be one."""

    @property
    def bundle(self) -> dict[str, float]:
        """As Ray names them; what a trial needs none of is left out."""
        kind = {} if self.accelerator is None else {self.accelerator: 0.001}
        return {
            name: held for name, held in {"CPU": self.cpus, "GPU": self.gpus}.items() if held
        } | kind

    @property
    def slots(self) -> int | None:
        """Trials that a host's GPUs hold at a time; None if trials hold none."""
        return max(1, int(1 / self.gpus)) if self.gpus else None

    def fits(self, node: dict[str, Any]) -> int:
        """Trials that a node holds at a time."""
        have = node["Resources"]
        if self.accelerator is not None and self.accelerator not in have:
            return 0
        by_cpu = int(have.get("CPU", 0) / self.cpus) if self.cpus else 10**6
        by_gpu = int(have.get("GPU", 0) / self.gpus) if self.gpus else 10**6
        return min(by_cpu, by_gpu)


def alive_nodes() -> list[dict[str, Any]]:
    """The nodes that live. RuntimeError if this process's own is not among them.

    A driver whose own node is dead would wait for ever: Ray 2.60 does not end it.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    if ray.get_runtime_context().get_node_id() not in {node["NodeID"] for node in nodes}:
        raise RuntimeError("the Ray node of this driver has died")
    return nodes


def kind_of(node: dict[str, Any]) -> str:
    """Ray's names for the kind of a node's GPUs; empty where it has none, or knows no name."""
    return " ".join(sorted(name for name in node["Resources"] if name.startswith(_KIND)))


def shared_with_others(nodes: list[dict[str, Any]]) -> list[str]:
    """Ids of those nodes of which somebody holds GPUs already."""
    free = state.available_resources_per_node()  # type: ignore[no-untyped-call]
    gpus = {node["NodeID"]: node["Resources"].get("GPU", 0) for node in nodes}
    return [node for node, count in gpus.items() if count > free.get(node, {}).get("GPU", 0)]


def draining_nodes() -> set[str]:
    """Ids of the nodes that are about to be taken away (`ray drain-node`, a spot instance)."""
    return set(state.get_draining_nodes())


def dead_actors() -> set[str]:
    """Ids of this driver's actors that Ray has given up."""
    job = ray.JobID.from_hex(ray.get_runtime_context().get_job_id())
    return set(actors(job_id=job, actor_state_name="DEAD"))


def share_of(
    resources: "ResourcesSpec", nodes: list[dict[str, Any]], threads: int | None = None
) -> Share:
    """Cores and GPUs per trial; `auto` shares a GPU, or the `threads` of a host on a node without
    any, between its slots."""
    kind = resources.accelerator_type
    accelerator = None if kind is None else f"{_KIND}{kind}"
    if accelerator is not None:
        nodes = [node for node in nodes if accelerator in node["Resources"]]
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
            fewest = min((count for count in cores if count), default=1.0)
            cpus = min(fewest, threads or fewest) / resources.slots
    return Share(_floor(float(cpus)), _floor(float(gpus)), accelerator)


def _floor(amount: float) -> float:
    """Ray keeps books in ten-thousandths; slots must not be lost to rounding up."""
    return math.floor(amount * 10_000) / 10_000


def node_slots_of(
    nodes: list[dict[str, Any]], share: Share, threads: int | None = None
) -> list[NodeSlot]:
    """Where hosts belong: every GPU, or group of them, if trials hold GPUs, otherwise every node,
    or every `threads` of its cores; if it has what a trial holds.

    Ray gives trials of one size the same groups again and again, from the first GPU on.
    """
    node_slots = []
    for node in nodes:
        if not share.fits(node):
            continue
        cores = int(node["Resources"].get("CPU", 0))
        if not share.gpus:
            parts = max(1, cores // threads) if threads else 1
            own = max(1, cores // parts)
            node_slots += [
                NodeSlot(node["NodeID"], None, own, kind_of(node), part) for part in range(parts)
            ]
            continue
        size = max(1, int(share.gpus))
        firsts = range(0, int(node["Resources"]["GPU"]) - size + 1, size)
        groups = [",".join(str(first + other) for other in range(size)) for first in firsts]
        node_slots += [
            NodeSlot(node["NodeID"], gpus, max(1, cores // len(groups)), kind_of(node))
            for gpus in groups
        ]
    return node_slots
