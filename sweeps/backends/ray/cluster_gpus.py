"""The GPUs that a Ray cluster has in its books, without running anything there."""

from collections import Counter
from collections.abc import Mapping

import ray

from sweeps.backends.ray.connection import connect
from sweeps.backends.ray.nodes import alive_nodes, kind_of


def cluster_gpus(address: str | None) -> Mapping[str, int]:
    """GPUs by kind, as Ray calls it after `accelerator_type:` (`A100`, `L4`); "" where Ray knows
    none. This process leaves the cluster again. Raises Unavailable."""
    connect(address, [])
    try:
        found: Counter[str] = Counter()
        for node in alive_nodes():
            number = int(node["Resources"].get("GPU", 0))
            if number:
                found[kind_of(node).partition(":")[2]] += number
        return found
    finally:
        ray.shutdown()
