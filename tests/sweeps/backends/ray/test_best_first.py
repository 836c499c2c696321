"""Which host takes the next trial, whatever the cluster is; without Ray."""

import random
from collections import Counter

import pytest

from sweeps.backends.ray.placement import Room, best_first, slots_each


def hosts(*gpus_of_nodes: int, slots: int) -> list[Room]:
    return [
        Room(f"{node}/{gpu}", str(node), slots)
        for node, count in enumerate(gpus_of_nodes)
        for gpu in range(count)
    ]


def filled(rooms: list[Room], node_slots: dict[str, int], live: Counter[str], trials: int) -> None:
    """Give so many more trials their hosts, one after the other."""
    for _ in range(trials):
        now = [Room(r.name, r.node_id, r.slots, live[r.name]) for r in rooms]
        live[best_first(now, node_slots)[0].name] += 1


def is_even(rooms: list[Room], live: Counter[str]) -> bool:
    counts = [live[room.name] for room in rooms]
    return min(counts) > 0 or max(counts) < 2


@pytest.mark.parametrize("trials", [4, 8, 12, 40])
@pytest.mark.parametrize("nodes", [(4, 4), (1, 4), (8,), (1, 2, 5)])
def test_no_gpu_is_idle_while_another_has_two_trials(nodes: tuple[int, ...], trials: int) -> None:
    slots = 40
    rooms = hosts(*nodes, slots=slots)
    node_slots = {str(node): count * slots for node, count in enumerate(nodes)}
    live: Counter[str] = Counter()
    for _ in range(trials):
        filled(rooms, node_slots, live, 1)
        assert is_even(rooms, live)
    assert max(live.values()) - min(live[room.name] for room in rooms) <= 1


def test_nodes_get_trials_evenly_before_a_node_gets_a_second_one() -> None:
    rooms, live = hosts(4, 4, slots=1), Counter[str]()
    filled(rooms, {"0": 4, "1": 4}, live, 4)
    assert Counter(name.partition("/")[0] for name in live.elements()) == {"0": 2, "1": 2}
    larger, live = hosts(1, 4, slots=2), Counter[str]()
    filled(larger, {"0": 2, "1": 8}, live, 1)
    assert list(live) == ["1/0"], "of equal hosts, the one whose node has more room"


def test_a_full_host_and_a_host_on_a_full_node_come_last() -> None:
    rooms = [Room("a", "0", 2, 2), Room("b", "0", 2, 0), Room("c", "1", 3, 2)]
    assert [r.name for r in best_first(rooms, {"0": 4, "1": 3})] == ["b", "c", "a"]
    assert best_first(rooms, {"0": 2, "1": 3})[0].name == "c", "its node's cores are all taken"


def test_trials_end_and_nodes_come_and_go() -> None:
    """What runs is not moved: it is the next trial that gets an idle GPU."""
    rng = random.Random(0)
    slots, live = 6, Counter[str]()
    sizes, joined = {0: 4, 1: 2}, 2
    for turn in range(200):
        if turn % 40 == 20:
            sizes[joined], joined = rng.choice([1, 4]), joined + 1
        if turn % 40 == 39:
            del sizes[rng.choice(list(sizes))]
        rooms = [
            Room(f"{n}/{g}", str(n), slots) for n, count in sizes.items() for g in range(count)
        ]
        names = {room.name for room in rooms}
        for name in [name for name in live if name not in names or rng.random() < 0.2]:
            del live[name]
        node_slots = {str(node): count * slots for node, count in sizes.items()}
        while sizes and live.total() < 12:
            before = live.copy()
            filled(rooms, node_slots, live, 1)
            (chosen,) = live - before
            assert before[chosen] == min(before[name] for name in names)


@pytest.mark.parametrize(
    ("useful", "trials", "slots"),
    [
        ([32] * 8, 8, [1] * 8),
        ([32] * 8, 10, [2] * 8),
        ([32] * 8, 2, [1] * 8),
        ([32] * 8, 1000, [32] * 8),
        ([16], 10, [10]),
        ([4] * 4 + [16], 20, [4, 4, 4, 4, 4]),
        ([4] * 4 + [16], 26, [4, 4, 4, 4, 10]),
        ([2, 2], 7, [2, 2]),
        ([], 5, []),
    ],
)
def test_hosts_get_as_few_slots_as_hold_the_trials(
    useful: list[int], trials: int, slots: list[int]
) -> None:
    assert slots_each(useful, trials) == slots
