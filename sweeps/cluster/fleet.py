"""The driver's hosts: one per GPU, or one per node without GPUs.

Hosts are named, non-detached actors pinned to their node: they die with the driver, and one that
dies alone is restarted by Ray in its place, empty. They hold
nothing in Ray's books (proxies do), so a host's device is fixed through its environment.
"""

import logging
import os
import time
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from peft_jobs import Fenced
from sweeps.cluster.host_actor import HostActor
from sweeps.spec import ResourcesSpec

log = logging.getLogger(__name__)

MAX_CALLS = 1000
_LOOK_EVERY_SECONDS = 1.0
_CALL_SECONDS = 10.0


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


class Fleet:
    """All hosts of a sweep on the cluster that this process is connected to."""

    def __init__(self, resources: ResourcesSpec, options: dict[str, Any]) -> None:
        self._engine, self._options = resources.engine, options
        self._max_concurrent = resources.max_concurrent
        self._hosts: dict[Place, Any] = {}
        self._looked = 0.0
        self.share = _share(resources, _alive_nodes())
        self.ensure()

    def ensure(self) -> None:
        """Make the missing hosts: at the start, and on nodes that joined."""
        self._looked = time.monotonic()
        places = _places(_alive_nodes(), self.share)
        for place in [place for place in self._hosts if place not in places]:
            log.warning("the node of host %s is gone", place.name)
            del self._hosts[place]
        for place in places:
            if place not in self._hosts:
                self._hosts[place] = self._make(place)

    def ensure_now_and_then(self) -> None:
        """`ensure`, at most once a second."""
        if time.monotonic() - self._looked > _LOOK_EVERY_SECONDS:
            self.ensure()

    def capacity(self) -> int:
        """Trials that the cluster holds at a time."""
        slots = 0
        for node in _alive_nodes():
            have = node["Resources"]
            by_cpu = int(have.get("CPU", 0) / self.share.cpus) if self.share.cpus else 10**6
            by_gpu = int(have.get("GPU", 0) / self.share.gpus) if self.share.gpus else 10**6
            slots += min(by_cpu, by_gpu)
        return min(slots, self._max_concurrent or slots)

    def names(self) -> tuple[str, ...]:
        """The names of all hosts."""
        return tuple(place.name for place in self._hosts)

    def any(self) -> Any:
        """Some host, for work that any of them can do."""
        return next(iter(self._hosts.values()))

    def cancel(self, trial: int, attempt: int, reason: str, host: str) -> None:
        """Tell a host to stop an attempt.

        One that is gone, or a successor that never had the attempt, has nothing to stop; the trial
        goes on as the next attempt, and its next report is answered in the same way.
        """
        try:
            call: Any = ray.get_actor(host).request_cancel.remote(trial, attempt, reason)
            ray.get(call, timeout=_CALL_SECONDS)
        except (ray.exceptions.RayError, ValueError, KeyError, Fenced) as error:
            log.warning("host %s did not cancel trial %d: %r", host, trial, error)

    def status(self) -> dict[str, dict[str, Any]]:
        """Each host's status by name."""
        return {place.name: ray.get(host.status.remote()) for place, host in self._hosts.items()}

    def interrupt(self) -> None:
        """Ask all hosts to interrupt their trials at the next step; does not wait."""
        for host in self._hosts.values():
            host.close.remote()

    def close(self) -> None:
        """Stop all hosts: their trials are interrupted."""
        for host in self._hosts.values():
            ray.kill(host)
        self._hosts.clear()

    def _make(self, place: Place) -> Any:
        environment = {} if place.gpu is None else {"CUDA_VISIBLE_DEVICES": place.gpu}
        options = dict(self._options)
        if self._engine == "solo":
            options.setdefault("threads", place.cores)
        actor = ray.remote(HostActor).options(
            name=place.name,
            num_cpus=0,
            num_gpus=0,
            max_restarts=-1,  # in place, under the same name, on the same device
            max_concurrency=MAX_CALLS,
            runtime_env={"env_vars": environment} if environment else None,
            scheduling_strategy=NodeAffinitySchedulingStrategy(place.node_id, soft=False),
        )
        return actor.remote(self._engine, options, environment)


def _alive_nodes() -> list[dict[str, Any]]:
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    return [node for node in nodes if node["Alive"]]


def _share(resources: ResourcesSpec, nodes: list[dict[str, Any]]) -> Share:
    """Cores and GPUs per trial; `auto` gives a trial a whole GPU, or a whole node without any."""
    with_gpus = [node["Resources"] for node in nodes if node["Resources"].get("GPU")]
    gpus = resources.gpus_per_trial
    if gpus == "auto":
        gpus = 1.0 if with_gpus else 0.0
    cpus = resources.cpus_per_trial
    if cpus == "auto":
        if gpus:
            per_gpu = [have.get("CPU", 1) / have["GPU"] for have in with_gpus]
            cpus = max(0.1, min(per_gpu, default=1.0) * gpus)
        else:
            cores = [node["Resources"].get("CPU", 0) for node in nodes]
            cpus = min((count for count in cores if count), default=1.0)
    return Share(float(cpus), float(gpus))


def _places(nodes: list[dict[str, Any]], share: Share) -> list[Place]:
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
