"""How a node's cores are divided among hosts; without Ray."""

from collections.abc import Mapping
from typing import Any

import pytest

from sweeps.backends.ray.cores import worthwhile_threads
from sweeps.backends.ray.nodes import node_slots_of
from sweeps.backends.ray.shares import Shares, dealt_out
from sweeps.spec.resources import ResourcesSpec


def node(name: str, cores: int) -> dict[str, Any]:
    return {"NodeID": name, "Resources": {"CPU": cores}}


@pytest.mark.parametrize(
    ("seconds", "most", "threads"),
    [
        ({}, 8, None),
        ({2: 1.0}, 8, None),
        ({2: 1.0, 1: 1.0}, 8, 1),  # twice the steps
        ({2: 1.0, 1: 1.59}, 8, 1),  # 2 / 1.59 = 1.26 times
        ({2: 1.0, 1: 1.61}, 8, None),  # 1.24 times
        ({2: 1.0, 1: 1.0}, 1, None),
        ({8: 1.0, 4: 1.1, 2: 1.8, 1: 3.7}, 8, 2),  # 1, 1.82, 2.22, 2.16 times
        ({8: 1.0, 4: 1.1, 2: 1.8, 1: 3.7}, 3, 4),
        ({8: 1.0, 4: 1.0, 2: 2.0}, 8, 4),  # 2 and 2 times: the fewer hosts
    ],
)
def test_threads_of_a_host_are_those_that_make_the_most_steps_on_all_cores(
    seconds: Mapping[int, float], most: int, threads: int | None
) -> None:
    assert worthwhile_threads(seconds, most) == threads


def rooms(shares: Shares, nodes: list[dict[str, Any]], live: dict[str, int]) -> dict[str, int]:
    hosts = node_slots_of(nodes, shares.default, shares.threads)
    found = shares.places(hosts, nodes, live)
    return {room.name.removeprefix("peft-sweeps-host-"): room.slots for room in found}


def test_hosts_share_the_cores_of_their_node_and_each_takes_its_trials() -> None:
    nodes = [node("a", 2), node("b", 8)]
    shares = Shares(ResourcesSpec(), nodes, threads=2)
    slots = node_slots_of(nodes, shares.default, 2)
    assert [(slot.node_id, slot.cores) for slot in slots] == [("a", 2)] + [("b", 2)] * 4
    assert len({slot.name for slot in slots}) == 5
    assert slots[1].name == "peft-sweeps-host-b-cpu", "as before it was divided"
    assert rooms(shares, nodes, {}) == {"a-cpu": 1} | {
        f"b-cpu{part}": 1 for part in ("", "1", "2", "3")
    }
    assert shares.capacity(nodes, 5) == 5
    assert shares.default.bundle == {"CPU": 2.0}


def test_slots_that_were_asked_for_are_those_of_a_node() -> None:
    nodes = [node("a", 2)]
    given = dealt_out(ResourcesSpec(slots_per_gpu=8), nodes, 1)
    shares = Shares(given, nodes, 1)
    assert rooms(shares, nodes, {}) == {"a-cpu": 4, "a-cpu1": 4}
    assert shares.capacity(nodes, 2) == 8
    assert dealt_out(ResourcesSpec(slots_per_gpu=8), nodes, None).slots == 8
    with_gpus = [{"NodeID": "a", "Resources": {"CPU": 2, "GPU": 2}}]
    assert dealt_out(ResourcesSpec(slots_per_gpu=8), with_gpus, 1).slots == 8


def test_trials_are_dealt_out_evenly_and_one_goes_to_each_host_at_least() -> None:
    nodes = [node("a", 2)]
    few = Shares.among(ResourcesSpec(), nodes, 1, {"": 1}, 1)
    assert few.capacity(nodes, 2) == 2
    many = Shares.among(ResourcesSpec(), nodes, 5, {"": 8}, 1)
    assert rooms(many, nodes, {}) == {"a-cpu": 3, "a-cpu1": 3}
    assert many.capacity(nodes, 2) == 5
    first = many.places(
        node_slots_of(nodes, many.default, 1), nodes, {"peft-sweeps-host-a-cpu": 1}
    )[0]
    assert first.name.endswith("cpu1")
