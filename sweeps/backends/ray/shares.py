"""What a trial holds on each node, and so how many trials a node holds at a time."""

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from sweeps.backends.ray.nodes import NodeSlot, Share, kind_of, node_slots_of, share_of
from sweeps.backends.ray.placement import Room, best_first, slots_each
from sweeps.spec.resources import ResourcesSpec


class Shares:
    """Nodes are as Ray lists them."""

    def __init__(
        self, resources: ResourcesSpec, nodes: list[dict[str, Any]], threads: int | None = None
    ) -> None:
        """`threads` are those of a host on a node without GPUs; None is all of its cores."""
        self.threads = threads
        self.default = share_of(resources, nodes, threads)
        """On nodes with GPUs of a kind that nothing is known about."""
        self._of_kind: dict[str, Share] = {}
        self._at_once: int | None = None

    @classmethod
    def among(
        cls,
        resources: ResourcesSpec,
        nodes: list[dict[str, Any]],
        trials: int,
        useful: Mapping[str, int],
        threads: int | None = None,
    ) -> "Shares":
        """Those of so many trials in all, and of one on each host at least.

        `useful` are the trials that a host has use for, by kind of its GPUs.
        """
        at_once = min(trials, resources.max_concurrent or trials)
        shares = cls(resources, nodes, threads)
        kinds = [slot.kind for slot in node_slots_of(nodes, shares.default, threads)]
        if kinds:
            most = [useful.get(kind, min(useful.values())) for kind in kinds]
            slots = dict(zip(kinds, slots_each(most, at_once), strict=True))
            shares = cls(_with_slots(resources, min(slots.values())), nodes, threads)
            for kind, number in slots.items():
                own = [n for n in nodes if kind_of(n) == kind and shares.default.fits(n)]
                shares._of_kind[kind] = share_of(_with_slots(resources, number), own, threads)
        shares._at_once = at_once
        return shares

    def on(self, node: dict[str, Any]) -> Share:
        """What a trial holds on a node."""
        return self._of_kind.get(kind_of(node), self.default)

    def capacity(self, nodes: list[dict[str, Any]], num_hosts: int) -> int:
        """Trials that the nodes should hold at a time."""
        slots = sum(self.on(node).fits(node) for node in nodes)
        return slots if self._at_once is None else min(slots, max(self._at_once, num_hosts))

    def places(
        self, hosts: Collection[NodeSlot], nodes: list[dict[str, Any]], live: Mapping[str, int]
    ) -> list[Room]:
        """The hosts of these nodes, the best for the next trial first.

        `live` are the trials by name of their host.
        """
        shares = {node["NodeID"]: self.on(node) for node in nodes}
        held = {node["NodeID"]: self.on(node).fits(node) for node in nodes}
        parts = Counter(host.node_id for host in hosts)
        rooms = [
            Room(
                host.name,
                host.node_id,
                own.slots or -(-held[host.node_id] // parts[host.node_id]),
                live.get(host.name, 0),
            )
            for host in hosts
            if (own := shares.get(host.node_id)) is not None
        ]
        return best_first(rooms, held)


def dealt_out(
    resources: ResourcesSpec, nodes: list[dict[str, Any]], threads: int | None
) -> ResourcesSpec:
    """With the slots of a node, if they are given, dealt out among its hosts of so many threads."""
    share = share_of(resources, nodes)
    if threads is None or share.gpus or resources.slots_per_gpu == "auto":
        return resources
    cores = [int(node["Resources"].get("CPU", 0)) for node in nodes if share.fits(node)]
    parts = max(1, min(cores, default=1) // threads)
    return _with_slots(resources, -(-resources.slots // parts))


def _with_slots(resources: ResourcesSpec, slots: int) -> ResourcesSpec:
    return resources.model_copy(update={"slots_per_gpu": slots})
