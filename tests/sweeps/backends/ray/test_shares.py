"""What a trial holds where nodes differ; without Ray."""

from typing import Any

import pytest

from sweeps.backends.ray.nodes import node_slots_of
from sweeps.backends.ray.shares import Shares
from sweeps.spec.resources import ResourcesSpec


def node(name: str, gpus: int, kind: str, cpus: int = 16) -> dict[str, Any]:
    resources = {"CPU": cpus, "GPU": gpus, f"accelerator_type:{kind}": 1.0}
    return {"NodeID": name, "Resources": resources}


LARGE, SMALL = node("large", 4, "A100"), node("small", 2, "L4")


def places(shares: Shares, nodes: list[dict[str, Any]], live: dict[str, int]) -> dict[str, int]:
    """Slots by device of each host."""
    hosts = node_slots_of(nodes, shares.default)
    rooms = shares.places(hosts, nodes, live)
    return {f"{room.node_id}/{room.name[-1]}": room.slots for room in rooms}


def test_a_node_of_smaller_gpus_takes_fewer_trials() -> None:
    useful = {"accelerator_type:A100": 16, "accelerator_type:L4": 2}
    shares = Shares.among(ResourcesSpec(), [LARGE, SMALL], 30, useful)
    assert shares.on(LARGE).gpus == pytest.approx(1 / 7, abs=1e-4)
    assert shares.on(SMALL).gpus == 0.5
    assert shares.capacity([LARGE, SMALL], 6) == 30, "28 + 4, and no more than was wanted"
    slots = {f"large/{gpu}": 7 for gpu in range(4)} | {f"small/{gpu}": 2 for gpu in range(2)}
    assert places(shares, [LARGE, SMALL], {}) == slots


def test_few_trials_get_a_gpu_each_and_what_ray_holds_is_true() -> None:
    useful = {"accelerator_type:A100": 16, "accelerator_type:L4": 2}
    shares = Shares.among(ResourcesSpec(), [LARGE, SMALL], 3, useful)
    assert shares.on(LARGE).bundle == {"CPU": 4.0, "GPU": 1.0}
    assert shares.capacity([LARGE, SMALL], 6) == 6, "one on each host at least"
    at_most = ResourcesSpec(max_concurrent=8)
    assert Shares.among(at_most, [LARGE, SMALL], 100, useful).on(LARGE).gpus == 0.5


def test_a_kind_that_joins_later_takes_as_few_as_the_smallest_that_is_known() -> None:
    shares = Shares.among(ResourcesSpec(), [LARGE], 40, {"accelerator_type:A100": 8})
    unknown = node("new", 1, "T4")
    assert shares.on(unknown).gpus == shares.on(LARGE).gpus == 0.125
    assert shares.capacity([LARGE, unknown], 5) == 40


@pytest.mark.parametrize(("gpus", "slots"), [(0.25, 4), (1, 1), (2, 1), (1 / 3, 3)])
def test_slots_of_a_host_follow_from_what_is_asked_for(gpus: float, slots: int) -> None:
    shares = Shares(ResourcesSpec(gpus_per_trial=gpus, cpus_per_trial=0.1), [LARGE])
    assert set(places(shares, [LARGE], {}).values()) == {slots}


def test_without_gpus_a_host_takes_what_its_node_holds() -> None:
    nodes = [{"NodeID": name, "Resources": {"CPU": cores}} for name, cores in (("a", 2), ("b", 8))]
    shares = Shares(ResourcesSpec(slots_per_gpu=4), nodes)
    rooms = shares.places(node_slots_of(nodes, shares.default), nodes, {})
    assert {room.node_id: room.slots for room in rooms} == {"a": 4, "b": 16}
    assert rooms[0].node_id == "b"


def test_a_cluster_without_a_node_that_fits_is_no_error() -> None:
    shares = Shares.among(ResourcesSpec(), [], 10, {"": 4})
    assert shares.capacity([], 0) == 0
    assert shares.places([], [], {}) == []
