"""The processes of a sweep's proxies: started before their trials, and kept from trial to trial.

A process costs half a second of a core and 70 MB, and the host is alone with its first trial until
the others' proxies are there. Both classes stand in for parts of Tune 2.60's controller.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ray
from ray.util import placement_group_table
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sweeps.backends.ray.proxy import TrialProxy

WAIT_SECONDS = 2.0
"""How long a trial waits for room before kept processes make room for it."""


class Proxies:
    """What Tune asks for the class of its actors (`_ActorClassCache`).

    Processes that wait hold nothing in Ray's books: a trial's placement group does. One that must
    be told by Ray which GPUs are its own is made when its trial comes.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, list[Any]] = defaultdict(list)
        self._made: Any = ray.remote(TrialProxy)
        given: Any = ray.remote(TrialProxy)  # Tune takes nothing but an ActorClass
        given.options = self._placed
        self._given = given

    def start(self, counts: Mapping[str, int]) -> None:
        """Start processes on nodes, so many on each; does not wait."""
        for node, count in counts.items():
            here = NodeAffinitySchedulingStrategy(node, soft=False)
            made = self._made.options(num_cpus=0, scheduling_strategy=here)
            self._waiting[node] += [made.remote() for _ in range(count)]

    def keep(self, count: int) -> None:
        """End those beyond `count` that wait."""
        surplus = sum(map(len, self._waiting.values())) - count
        for node in sorted(self._waiting, key=lambda node: -len(self._waiting[node])):
            for _ in range(min(surplus, len(self._waiting[node]))):
                ray.kill(self._waiting[node].pop())
                surplus -= 1

    def get(self, trainable: type) -> Any:
        """The class of all actors."""
        return self._given

    def take(self, config: Mapping[str, Any], group: Any) -> Any:
        """A process that waits on the node of a trial's placement group; None if there is none."""
        if not any(self._waiting.values()) or config["held"].get("GPU", 0) >= 1:
            return None
        node = placement_group_table(group)["bundles_to_node_id"][0]
        if not self._waiting[node] or not any(node in name for name in config["places"]):
            return None
        return self._waiting[node].pop()

    def _placed(self, **options: Any) -> "_Placed":
        return _Placed(self, self._made.options(**options), options["scheduling_strategy"])


class _Placed:
    """An actor's class with its options: `remote` gives an actor."""

    def __init__(self, proxies: Proxies, made: Any, strategy: Any) -> None:
        self._proxies, self._made = proxies, made
        self._group = strategy.placement_group

    def remote(self, config: dict[str, Any], storage: object) -> Any:
        actor = self._proxies.take(config, self._group) or self._made.remote()
        actor.reset.remote(config)
        return actor


class KeptProxies:
    """What Tune asks for a free actor (`_ObjectCache`), by what the actor holds.

    Tune's own keeps as many as there are trials that wait for one. Here none is asked for before
    there is room, so of several proxies whose trials end in one turn it would keep one.
    """

    num_cached_objects = 0
    """Tune would give them to trials whose own proxies have just been started."""
    total_max_objects = 0

    def __init__(
        self, anyone_waits: Callable[[], bool], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`anyone_waits`: whether a trial waits for room, which kept proxies may hold elsewhere."""
        self._free: dict[Any, list[Any]] = defaultdict(list)
        self._anyone_waits, self._clock = anyone_waits, clock
        self._since: float | None = None

    def has_cached_object(self, held: Any) -> bool:
        return bool(self._free[held])

    def pop_cached_object(self, held: Any) -> Any:
        return self._free[held].pop() if self._free[held] else None

    def cache_object(self, held: Any, actor: Any) -> bool:
        self._free[held].append(actor)
        return True

    def increase_max(self, held: Any, by: int = 1) -> None:
        """Nothing: all are kept."""

    decrease_max = increase_max

    def flush_cached_objects(self, force_all: bool = False) -> Iterator[Any]:
        """Those to end now: all at the end, or where a trial has waited for room."""
        now = self._clock()
        if not self._anyone_waits():
            self._since = None
        elif self._since is None:
            self._since = now
        if force_all or (self._since is not None and now - self._since > WAIT_SECONDS):
            for actors in self._free.values():
                while actors:
                    yield actors.pop()
