"""The driver's hosts: one per GPU, or one per node without GPUs.

Hosts are named, non-detached actors pinned to their node: they die with the driver, and one that
dies alone is restarted by Ray where it was, empty. They hold
nothing in Ray's books (proxies do), so a host's device is fixed through its environment.
"""

import contextlib
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from peft_jobs import SpecError
from sweeps.backends.ray.demand import Demand, cannot_be_satisfied
from sweeps.backends.ray.hangs import Hangs
from sweeps.backends.ray.host_actor import HostActor
from sweeps.backends.ray.nodes import (
    NodeSlot,
    alive_nodes,
    dead_actors,
    draining_nodes,
    node_slots_of,
)
from sweeps.backends.ray.placement import Room
from sweeps.backends.ray.shares import Shares, dealt_out
from sweeps.backends.ray.unawaited import Unawaited
from sweeps.errors import Unavailable
from sweeps.spec.resources import ResourcesSpec

log = logging.getLogger(__name__)

MAX_CALLS = 1000
MAX_EXPECTED = 8
"""Trials of a host for which processes are started before it says how many it has use for."""
MAX_STARTS = 3
"""Starts in a row that a host may fail before the sweep is ended."""
_LOOK_EVERY_SECONDS = 1.0
_CALL_SECONDS = 20.0
_CHECKPOINT_EVERY_SECONDS = 10.0
_SETTLED_SECONDS = 600.0
"""A host that is dead for good in less has failed to start."""
_UNCALLED = "all references to the actor were removed"
"""What Ray 2.60 says of an actor if it cannot ask its owner, which has not let go of it."""
NODE_SECONDS = 600.0
"""How long a sweep that no node fits waits for one that the cluster's autoscaler adds."""


@dataclass
class _Host:
    """A host's actor, and how often in a row it could not be started."""

    actor: Any
    cores: int
    """With which it was made."""
    made: float
    failures: int = 0


class Fleet:
    """All hosts of a sweep on the cluster that this process is connected to."""

    def __init__(
        self,
        resources: ResourcesSpec,
        options: dict[str, Any],
        marker: tuple[str, str] | None = None,
    ) -> None:
        """`marker` is of `SweepFolder.write_shared_marker`; a host that does not see it ends."""
        self._engine, self._options, self._marker = resources.engine, options, marker
        self._max_concurrent = resources.max_concurrent
        self._hosts: dict[NodeSlot, _Host] = {}
        self._draining: dict[str, float] = {}
        """Nodes about to go, and when their hosts were last asked for checkpoints."""
        self._looked = 0.0
        self.hangs = Hangs(resources.stall_seconds)
        self._calls = Unawaited()
        self._resources = resources
        self._demand = None if resources.address is None else Demand()
        self.wanted: Callable[[], int] = lambda: 1
        """Trials that would run now if there were room for all."""
        self.running: Callable[[], list[int]] = list
        """The trials that run."""
        self._nodes = alive_nodes()
        """As of the last look."""
        self._is_tried = resources.chooses_threads
        given = resources.threads_per_host
        threads = None if given == "auto" else given
        self.shares = Shares(dealt_out(resources, self._nodes, threads), self._nodes, threads)
        self.ensure()

    def wait_for_room(self, on_tick: Callable[[], object]) -> bool:
        """Whether the cluster holds a trial, now or once its autoscaler has added a node.

        `on_tick` is called about once a second meanwhile.
        """
        deadline = time.monotonic() + NODE_SECONDS
        told = False
        while self.capacity() < 1:
            if (
                self._demand is None
                or time.monotonic() > deadline
                or cannot_be_satisfied(self.shares.default)
            ):
                return False
            if not told:
                log.info("waiting up to %g s for a node that fits a trial", NODE_SECONDS)
                told = True
            on_tick()
            time.sleep(_LOOK_EVERY_SECONDS)
            # What `auto` means is known when there is a node.
            nodes, threads = alive_nodes(), self.shares.threads
            self.shares = Shares(dealt_out(self._resources, nodes, threads), nodes, threads)
            self.ensure()
        return True

    def ensure(self) -> None:
        """Make the missing hosts: at the start, on nodes that joined, where one is dead for good.

        On a node that is about to go none is made, and those there are asked for checkpoints.
        RuntimeError if a host cannot be started, or this process's own node is dead.
        """
        self._looked = time.monotonic()
        nodes, draining, dead = alive_nodes(), draining_nodes(), dead_actors()
        self._nodes = nodes
        alive = {node["NodeID"] for node in nodes}
        for node_slot in [node_slot for node_slot in self._hosts if node_slot.node_id not in alive]:
            log.warning("the node of host %s is gone", node_slot.name)
            del self._hosts[node_slot]
        for node_slot in node_slots_of(nodes, self.shares.default, self.shares.threads):
            if node_slot.node_id in draining:
                continue
            if node_slot not in self._hosts:
                self._hosts[node_slot] = self._made(node_slot)
            elif self._hosts[node_slot].actor._actor_id.hex() in dead:
                self._replace(node_slot)
        if self._demand is not None:
            wanted = self.wanted()
            self._demand.ask(self.shares.default, min(wanted, self._max_concurrent or wanted))
        for node_slot, host in self._hosts.items():
            if node_slot.cores != host.cores:  # again and again: Ray starts it with what it had
                host.actor.use_threads.remote(node_slot.cores)
        self._draining = {node: self._draining.get(node, 0.0) for node in draining & alive}
        self._save_what_drains()
        actors = {slot.name: host.actor for slot, host in self._hosts.items()}
        self.hangs.look(actors, self.running())
        self._calls.look()

    def ensure_now_and_then(self) -> None:
        """`ensure`, at most once a second."""
        if time.monotonic() - self._looked > _LOOK_EVERY_SECONDS:
            self.ensure()

    def capacity(self) -> int:
        """Trials that the cluster should hold at a time."""
        slots = self.shares.capacity(self._staying(), len(self._hosts))
        return min(slots, self._max_concurrent or slots)

    def divide(self, threads: int) -> None:
        """Have nodes without GPUs serve trials with hosts of so many threads each.

        Those that are there go on with fewer threads; the others are made.
        """
        if self.shares.default.gpus or threads == self.shares.threads:
            return
        self._is_tried = False
        resources = dealt_out(self._resources, self._nodes, threads)
        self.shares = Shares(resources, self._nodes, threads)
        slots = node_slots_of(self._nodes, self.shares.default, threads)
        named = {slot.name: slot for slot in slots}
        self._hosts = {named.get(slot.name, slot): host for slot, host in self._hosts.items()}
        self.ensure()

    def expected(self, trials: int) -> dict[str, int]:
        """How many of so many trials will run on each node, as far as is known before a host has
        said what it has use for; none where Ray gives each trial GPUs of its own."""
        resources, share = self._resources, self.shares.default
        if share.gpus >= 1 and (resources.gpus_per_trial, resources.slots_per_gpu) != ("auto",) * 2:
            return {}
        if resources.slots_per_gpu == "auto" and resources.gpus_per_trial == "auto":
            most = len(self._hosts) * (MAX_EXPECTED if self._engine == "packed" else 1)
        else:
            most = self.capacity()
        dealt = islice(cycle(self._hosts), min(trials, self._max_concurrent or trials, most))
        return dict(Counter(slot.node_id for slot in dealt))

    def num_gpus(self) -> int:
        """GPUs that the hosts hold; a host without one counts as one."""
        return sum(len((slot.gpus or "").split(",")) for slot in self._hosts)

    def places(self, live: Mapping[str, int]) -> list[Room]:
        """The hosts of the nodes that stay, see `Shares.places`."""
        return self.shares.places(self._hosts, self._staying(), live)

    def held_on(self, node_id: str | None) -> dict[str, float]:
        """What a trial on that node holds in Ray's books."""
        found = [node for node in self._nodes if node["NodeID"] == node_id]
        return (self.shares.on(found[0]) if found else self.shares.default).bundle

    def one_of_each_kind(self) -> dict[str, Any]:
        """A host for each kind of GPU."""
        return {slot.kind: host.actor for slot, host in self._hosts.items()}

    def _staying(self) -> list[dict[str, Any]]:
        return [node for node in self._nodes if node["NodeID"] not in self._draining]

    def names(self) -> tuple[str, ...]:
        """The names of all hosts."""
        return tuple(node_slot.name for node_slot in self._hosts)

    def wait_for_host(self, on_tick: Callable[[], object]) -> tuple[str, Any]:
        """The kind and the actor of a host that answers, on a node that stays if there is one.

        `on_tick` is called about once a second meanwhile. RuntimeError if none answers in time.
        """
        deadline = time.monotonic() + NODE_SECONDS
        while time.monotonic() < deadline:
            stay = [
                node_slot for node_slot in self._hosts if node_slot.node_id not in self._draining
            ]
            hosts = [(slot.kind, self._hosts[slot].actor) for slot in stay or self._hosts]
            calls = {actor.current_attempt.remote(0): (kind, actor) for kind, actor in hosts}
            for call in ray.wait(list(calls), timeout=1.0)[0] if calls else ():
                with contextlib.suppress(ray.exceptions.RayActorError):
                    ray.get(call)
                    return calls[call]
            on_tick()
            self.ensure_now_and_then()
            time.sleep(0.1)
        raise RuntimeError(f"no host answers after {NODE_SECONDS:g} s")

    def lives(self, host: str) -> bool:
        """Whether the node of a host is alive."""
        return any(node["NodeID"] in host for node in alive_nodes())

    def cancel(self, trial: int, attempt: int, reason: str, host: str) -> None:
        """Tell a host to stop an attempt; does not wait.

        One that is gone, or a successor that never had the attempt, has nothing to stop; the trial
        goes on as the next attempt, and its next report is answered in the same way.
        """
        try:
            call: Any = ray.get_actor(host).request_cancel.remote(trial, attempt, reason)
        except ValueError as error:
            log.warning("host %s did not cancel trial %d: %r", host, trial, error)
        else:
            self._calls.add(call, f"host {host} did not cancel trial {trial}")

    def cancel_anywhere(self, trial: int, reason: str) -> None:
        """Tell all hosts to stop a trial, whichever has it; does not wait."""
        for host in self._hosts.values():
            call = host.actor.cancel_trial.remote(trial, reason)
            self._calls.add(call, f"a host did not cancel trial {trial}")

    def interrupt(self) -> None:
        """Ask all hosts to interrupt their trials at the next step; does not wait."""
        for host in self._hosts.values():
            host.actor.close.remote()

    def close(self) -> None:
        """Stop all hosts: their trials are interrupted. Nodes without trials may go."""
        if self._demand is not None:
            self._demand.clear()
        for host in self._hosts.values():
            ray.kill(host.actor)
        self._hosts.clear()

    def _replace(self, node_slot: NodeSlot) -> None:
        """Make a host anew that Ray has given up: its constructor failed.

        SpecError if that found the sweep at fault, Unavailable if Ray cannot call this driver.
        """
        host = self._hosts[node_slot]
        settled = time.monotonic() - host.made > _SETTLED_SECONDS
        failures = 1 if settled else host.failures + 1
        error = _error_at_start(host.actor)
        _, is_at_fault, told = error.partition(f"{SpecError.__name__}: ")  # all that Ray hands on
        if is_at_fault:
            raise SpecError(told)
        if failures >= MAX_STARTS:
            if _UNCALLED in error:
                mode = os.environ.get("RAY_AUTH_MODE", "disabled")
                raise Unavailable(
                    f"the cluster cannot call this driver: RAY_AUTH_MODE is {mode!r} here and must "
                    "be the same there, and no firewall may be between them"
                )
            raise RuntimeError(f"the host {node_slot.name} cannot be started: {error}")
        log.warning("the host %s could not be started, trying again: %s", node_slot.name, error)
        ray.kill(host.actor)  # the name of a dead actor stays taken until then (Ray 2.60)
        self._hosts[node_slot] = self._made(node_slot, failures)

    def _save_what_drains(self) -> None:
        """Ask hosts on nodes that are about to go for checkpoints; does not wait."""
        now = time.monotonic()
        for node, asked in self._draining.items():
            if now - asked < _CHECKPOINT_EVERY_SECONDS:
                continue
            if not asked:
                log.warning("node %s is about to go; its trials will go on elsewhere", node)
            self._draining[node] = now
            for node_slot, host in self._hosts.items():
                if node_slot.node_id == node:
                    host.actor.checkpoint_all.remote()

    def _made(self, node_slot: NodeSlot, failures: int = 0) -> _Host:
        return _Host(self._make(node_slot), node_slot.cores, time.monotonic(), failures)

    def _make(self, node_slot: NodeSlot) -> Any:
        options = dict(self._options)
        if self._engine in ("solo", "packed"):
            options.setdefault("threads", node_slot.cores)
            options.setdefault("try_threads", self._is_tried and node_slot.gpus is None)
        if self._engine == "solo" and node_slot.gpus is not None and "," in node_slot.gpus:
            options.setdefault("spread", True)
        actor = ray.remote(HostActor).options(
            name=node_slot.name,
            num_cpus=0,
            num_gpus=0,
            max_restarts=-1,  # where it was, under the same name, on the same device
            max_concurrency=MAX_CALLS,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_slot.node_id, soft=False),
        )
        return actor.remote(self._engine, options, node_slot.gpus, self._marker)


def _error_at_start(actor: Any) -> str:
    """Why an actor is dead: of an exception in its constructor, what that says."""
    try:
        ray.get(actor.status.remote(), timeout=_CALL_SECONDS)
    except ray.exceptions.RayError as error:
        text = str(error).strip()
        return text.splitlines()[-1] if "creation task" in text else text
    return "it ended"
