"""Which host takes the next trial, and how many trials a host takes at a time.

Ray alone would put all shares of GPUs on the fullest GPU that fits.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Room:
    """A host, the trials that it takes at a time, and those that it has."""

    name: str
    node_id: str
    slots: int
    live: int = 0


def best_first(hosts: Sequence[Room], node_slots: Mapping[str, int]) -> list[Room]:
    """The hosts in the order in which the next trial should get them; full ones are last.

    First those with the fewest trials, of these the ones whose node has most room left.
    `node_slots` are the trials that each node holds: its cores may be fewer than its hosts' slots.
    """
    live_on: Counter[str] = Counter()
    for host in hosts:
        live_on[host.node_id] += host.live

    def rank(host: Room) -> tuple[bool, int, int]:
        left = node_slots[host.node_id] - live_on[host.node_id]
        return (host.live >= host.slots or left < 1, host.live, -left)

    return sorted(hosts, key=rank)


def slots_each(useful: Sequence[int], trials: int) -> list[int]:
    """Slots of each host, so that all together have as few as hold `trials`, and one at least.

    `useful` are the trials that each host has use for: none gets more, and those that have use for
    more get equally many.
    """
    slots = [min(1, most) for most in useful]
    for number in range(1, max(useful, default=0) + 1):
        slots = [min(number, most) for most in useful]
        if sum(slots) >= trials:
            break
    return slots
