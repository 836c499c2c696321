"""The driver's hosts: one per GPU, or one per node without GPUs.

Hosts are named, non-detached actors pinned to their node: they die with the driver, and one that
dies alone is restarted by Ray in its place, empty. They hold
nothing in Ray's books (proxies do), so a host's device is fixed through its environment.
"""

import contextlib
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from peft_jobs import Fenced, SpecError
from sweeps.backends.ray.demand import Demand, is_vain
from sweeps.backends.ray.host_actor import HostActor
from sweeps.backends.ray.nodes import (
    Place,
    alive_nodes,
    dead_actors,
    draining_nodes,
    places_of,
    share_of,
)
from sweeps.errors import Unavailable
from sweeps.spec.resources import ResourcesSpec

log = logging.getLogger(__name__)

MAX_CALLS = 1000
MAX_STARTS = 3
"""Starts in a row that a host may fail before the sweep is ended."""
_LOOK_EVERY_SECONDS = 1.0
_CALL_SECONDS = 10.0
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
    made: float
    failures: int = 0


class Fleet:
    """All hosts of a sweep on the cluster that this process is connected to."""

    def __init__(
        self,
        resources: ResourcesSpec,
        options: dict[str, Any],
        sign: tuple[str, str] | None = None,
    ) -> None:
        """`sign`: see `SweepFolder.sign`; a host that does not see it does not start."""
        self._engine, self._options, self._sign = resources.engine, options, sign
        self._max_concurrent = resources.max_concurrent
        self._hosts: dict[Place, _Host] = {}
        self._draining: dict[str, float] = {}
        """Nodes about to go, and when their hosts were last asked for checkpoints."""
        self._looked = 0.0
        self._resources = resources
        self._demand = None if resources.address is None else Demand()
        self.wanted: Callable[[], int] = lambda: 1
        """Trials that would run now if there were room for all."""
        self.share = share_of(resources, alive_nodes())
        self.ensure()

    def divide(self, resources: ResourcesSpec) -> None:
        """Share the devices between as many trials as `resources` say, now that it is known."""
        self._resources = resources
        self.share = share_of(resources, alive_nodes())

    def wait_for_room(self, on_tick: Callable[[], object]) -> bool:
        """Whether the cluster holds a trial, now or once its autoscaler has added a node.

        `on_tick` is called about once a second meanwhile.
        """
        deadline = time.monotonic() + NODE_SECONDS
        told = False
        while self.capacity() < 1:
            if self._demand is None or time.monotonic() > deadline or is_vain(self.share):
                return False
            if not told:
                log.info("waiting up to %g s for a node that fits a trial", NODE_SECONDS)
                told = True
            on_tick()
            time.sleep(_LOOK_EVERY_SECONDS)
            self.divide(self._resources)  # what `auto` means is known when there is a node
            self.ensure()
        return True

    def ensure(self) -> None:
        """Make the missing hosts: at the start, on nodes that joined, where one is dead for good.

        On a node that is about to go none is made, and those there are asked for checkpoints.
        RuntimeError if a host cannot be started, or this process's own node is dead.
        """
        self._looked = time.monotonic()
        nodes, draining, dead = alive_nodes(), draining_nodes(), dead_actors()
        alive = {node["NodeID"] for node in nodes}
        for place in [place for place in self._hosts if place.node_id not in alive]:
            log.warning("the node of host %s is gone", place.name)
            del self._hosts[place]
        for place in places_of(nodes, self.share):
            if place.node_id in draining:
                continue
            if place not in self._hosts:
                self._hosts[place] = _Host(self._make(place), time.monotonic())
            elif self._hosts[place].actor._actor_id.hex() in dead:
                self._replace(place)
        if self._demand is not None:
            wanted = self.wanted()
            self._demand.ask(self.share, min(wanted, self._max_concurrent or wanted))
        self._draining = {node: self._draining.get(node, 0.0) for node in draining & alive}
        self._save_what_drains()

    def ensure_now_and_then(self) -> None:
        """`ensure`, at most once a second."""
        if time.monotonic() - self._looked > _LOOK_EVERY_SECONDS:
            self.ensure()

    def capacity(self) -> int:
        """Trials that the cluster holds at a time."""
        nodes = [node for node in alive_nodes() if node["NodeID"] not in self._draining]
        slots = sum(self.share.fits(node) for node in nodes)
        return min(slots, self._max_concurrent or slots)

    def names(self) -> tuple[str, ...]:
        """The names of all hosts."""
        return tuple(place.name for place in self._hosts)

    def wait_for_host(self, on_tick: Callable[[], object]) -> Any:
        """A host that answers, on a node that stays if there is one.

        `on_tick` is called about once a second meanwhile. RuntimeError if none answers in time.
        """
        deadline = time.monotonic() + NODE_SECONDS
        while time.monotonic() < deadline:
            stay = [place for place in self._hosts if place.node_id not in self._draining]
            actors = [self._hosts[place].actor for place in stay or self._hosts]
            calls = {actor.current_attempt.remote(0): actor for actor in actors}
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
        calls = {place.name: host.actor.status.remote() for place, host in self._hosts.items()}
        return {name: ray.get(call) for name, call in calls.items()}

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

    def _replace(self, place: Place) -> None:
        """Make a host anew that Ray has given up: its constructor failed.

        SpecError if that found the sweep at fault, Unavailable if Ray cannot call this driver.
        """
        host = self._hosts[place]
        settled = time.monotonic() - host.made > _SETTLED_SECONDS
        failures = 1 if settled else host.failures + 1
        error = _last_words(host.actor)
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
            raise RuntimeError(f"the host {place.name} cannot be started: {error}")
        log.warning("the host %s could not be started, trying again: %s", place.name, error)
        ray.kill(host.actor)  # the name of a dead actor stays taken until then (Ray 2.60)
        self._hosts[place] = _Host(self._make(place), time.monotonic(), failures)

    def _save_what_drains(self) -> None:
        """Ask hosts on nodes that are about to go for checkpoints; does not wait."""
        now = time.monotonic()
        for node, asked in self._draining.items():
            if now - asked < _CHECKPOINT_EVERY_SECONDS:
                continue
            if not asked:
                log.warning("node %s is about to go; its trials will go on elsewhere", node)
            self._draining[node] = now
            for place, host in self._hosts.items():
                if place.node_id == node:
                    host.actor.checkpoint_all.remote()

    def _make(self, place: Place) -> Any:
        options = dict(self._options)
        if self._engine in ("solo", "packed"):
            options.setdefault("threads", place.cores)
        if self._engine == "solo" and place.gpus is not None and "," in place.gpus:
            options.setdefault("spread", True)
        actor = ray.remote(HostActor).options(
            name=place.name,
            num_cpus=0,
            num_gpus=0,
            max_restarts=-1,  # in place, under the same name, on the same device
            max_concurrency=MAX_CALLS,
            scheduling_strategy=NodeAffinitySchedulingStrategy(place.node_id, soft=False),
        )
        return actor.remote(self._engine, options, place.gpus, self._sign)


def _last_words(actor: Any) -> str:
    """Why an actor is dead: of an exception in its constructor, what that says."""
    try:
        ray.get(actor.status.remote(), timeout=_CALL_SECONDS)
    except ray.exceptions.RayError as error:
        text = str(error).strip()
        return text.splitlines()[-1] if "creation task" in text else text
    return "it ended"
