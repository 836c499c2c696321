"""What a sweep asks of its cluster's autoscaler: room for the trials that could run.

Ray keeps one such wish per cluster: it outlives its driver, and sweeps overwrite each other's. So
a sweep repeats its own now and then, and takes it back at its end.
"""

import json
import logging
import time

import ray
from ray.autoscaler.sdk import request_resources
from ray.autoscaler.v2.utils import is_autoscaler_v2
from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply  # type: ignore[attr-defined]
from ray.experimental.internal_kv import _internal_kv_get

from sweeps.backends.ray.nodes import Share

log = logging.getLogger(__name__)

MAX_BUNDLES = 1000
"""Trials that are asked for at most, whatever a sweep could run."""
_REPEAT_SECONDS = 60.0
_RPC_SECONDS = 10.0


class Demand:
    """The wish of one sweep; harmless on a cluster whose nodes nobody adds."""

    def __init__(self) -> None:
        is_autoscaler_v2(fetch_from_server=True)  # Ray 2.60 would remember another cluster's
        self._wish: tuple[Share, int] | None = None
        self._asked = 0.0

    def ask(self, share: Share, trials: int) -> None:
        """Wish for room for so many trials; tells Ray only what is new, or a minute old."""
        wish = (share, min(trials, MAX_BUNDLES))
        now = time.monotonic()
        if wish != self._wish or now - self._asked > _REPEAT_SECONDS:
            self._tell([share.bundle] * wish[1])
            self._wish, self._asked = wish, now

    def clear(self) -> None:
        """Take the wish back: nodes without trials may go."""
        if self._wish is not None:
            self._tell([])
            self._wish = None

    def _tell(self, bundles: list[dict[str, float]]) -> None:
        try:
            request_resources(bundles=bundles)
        except (ray.exceptions.RayError, RuntimeError, OSError) as error:
            log.warning("the cluster's autoscaler could not be asked: %s", error)


def cannot_be_satisfied(share: Share) -> bool:
    """Whether it is known that no node for a trial will be added, although one was asked for.

    Where nodes are started by hand, Ray runs an autoscaler that only looks on: the first version
    then makes up a type for each node, the second says that the wish cannot be met. So does the
    second for types of nodes that are all too small; the first keeps silent.
    """
    if is_autoscaler_v2():
        return share.bundle in _infeasible()
    status = _internal_kv_get(ray._private.ray_constants.DEBUG_AUTOSCALING_STATUS)
    report = json.loads(status).get("autoscaler_report") if status else None
    types = set((report or {}).get("node_type_mapping", {}).values())
    return any(f"node_{node['NodeID']}" in types for node in ray.nodes())  # type: ignore[no-untyped-call]


def _infeasible() -> list[dict[str, float]]:
    """What was asked for and cannot be had, as the second autoscaler sees it."""
    address = ray.get_runtime_context().gcs_address
    client = ray._raylet.GcsClient(address)  # type: ignore[attr-defined]
    reply = GetClusterStatusReply()
    reply.ParseFromString(client.get_cluster_status(timeout_s=_RPC_SECONDS))
    constraints = reply.autoscaling_state.infeasible_cluster_resource_constraints
    requests = [each.request for constraint in constraints for each in constraint.resource_requests]
    return [
        {name: round(held, 4) for name, held in request.resources_bundle.items()}
        for request in requests
    ]
