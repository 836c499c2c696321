"""Between Ray Tune's event loop and the driver: what Tune's plug-ins share."""

import logging
from collections import Counter
from typing import Any

import ray
from ray.tune.experiment import Trial

from peft_jobs import Kind, TrialResult
from peft_jobs.host.messages import message_of
from sweeps.backends.ray.fleet import Fleet
from sweeps.backends.ray.proxies import KeptProxies, Proxies
from sweeps.driver.driver import Driver

log = logging.getLogger(__name__)


class Bridge:
    """What Tune's plug-ins share: which Tune trial is which trial of the study."""

    def __init__(self, driver: Driver, fleet: Fleet, proxies: Proxies) -> None:
        self.driver, self.fleet, self._proxies = driver, fleet, proxies
        self.numbers: dict[str, int] = {}
        self.attempts_on: dict[int, tuple[int, str]] = {}
        """Attempt and host of each trial, as last heard of."""
        self._hosts: dict[int, str] = {}
        """The host of each trial: as last heard of, before that the one that was chosen for it."""
        self.controller: Any = None
        """Tune's, once it has a trial."""
        self.finished = False
        """True once the driver has nothing more to start."""

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles all it is given, and nobody reads that back."""
        return {}

    def join(self, wrapped: Any) -> None:
        """Have Tune's controller (2.60) take its actors from the sweep's own processes."""
        if self.controller is None:
            self.controller = controller = wrapped._tune_controller
            actors = controller._actor_manager
            controller._class_cache = self._proxies
            controller._actor_cache = KeptProxies(lambda: actors.num_pending_actors > 0)

    def take(self, trial_id: str, result: dict[str, Any]) -> None:
        """A trial's message: a report, its end, or that it was interrupted."""
        number = self.numbers.get(trial_id)
        if number is None or number not in self.driver.running:
            return
        self._hosts[number] = result["host"]
        attempt_on = (result["attempt"], result["host"])
        if self.attempts_on.get(number) != attempt_on:
            self.attempts_on[number] = attempt_on
            log.info("trial %d: attempt %d is on %s", number, *attempt_on)
        self.driver.reattempt(number, result["attempt"])
        kind = self.driver.take(number, message_of(result["message"]))
        if kind is not None:
            self.fleet.cancel(number, result["attempt"], kind, result["host"])

    def place(self, number: int) -> dict[str, Any]:
        """The place of a trial that starts, or whose proxy died, as `TrialProxy` takes it.

        A trial whose proxy died stays where its slot is.
        """
        hosts = (self._hosts.get(other) for other in self.driver.running if other != number)
        places = self.fleet.places(Counter(name for name in hosts if name is not None))
        _, own = self.attempts_on.get(number, (0, None))
        places.sort(key=lambda room: room.name != own)
        node = places[0].node_id if places else None
        if places:
            self._hosts[number] = places[0].name
        names = tuple(room.name for room in places)
        return {"places": names, "node": node, "held": self.fleet.held_on(node)}

    def end_proxy(self, number: int, host: str) -> None:
        """End the proxy of a trial on a host, if it hangs: Tune makes another one.

        What was on a host that the trial has left, nobody asks about.
        """
        is_there = self.attempts_on.get(number, (0, host))[1] == host
        if self.controller is None or number not in self.driver.running or not is_there:
            return
        for trial in self.controller.get_live_trials():
            actor = self._actor_of(trial)
            if trial.config.get("trial") == number and actor is not None:
                log.warning("trial %d: its proxy hangs and is ended", number)
                ray.kill(actor)

    def has_place(self, trial: Trial) -> bool:
        """Whether a trial's proxy is there, or starts; it may also wait for room."""
        return self._actor_of(trial) is not None

    def _actor_of(self, trial: Trial) -> Any:
        """The Ray actor that Tune 2.60 runs a trial in; None if it runs in none."""
        tracked = self.controller._trial_to_actor.get(trial)
        live = self.controller._actor_manager._live_actors_to_ray_actors_resources
        return live[tracked][0] if tracked in live else None

    def lost(self, trial_id: str, reason: str) -> None:
        """Tune gave a trial up: its proxy failed again and again."""
        number = self.numbers.get(trial_id)
        if number is not None and number in self.driver.running:
            if number in self.attempts_on:  # its slot must not wait for a proxy any longer
                attempt, host = self.attempts_on[number]
                self.fleet.cancel(number, attempt, "interrupted", host)
            kind = Kind.LOST
            if self.driver.stop_requested:
                self.driver.interrupt(number)
            else:
                self.driver.end(number, TrialResult(state=kind.state, kind=kind, error=reason))
