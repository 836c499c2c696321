"""What Ray Tune's event loop is given: trainable, searcher, scheduler and callback.

Tune calls them in this order (Ray 2.60): a result goes to the scheduler, then, if it is `done`,
to the searcher's `on_trial_complete` only. Tune never stops a trial here: a weak trial is
cancelled on its host and ends through its proxy like any other, with its own result.
"""

import logging
from concurrent.futures import Future, wait
from dataclasses import asdict
from typing import Any

from ray.tune import Callback, PlacementGroupFactory, Trainable
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from sweeps.backends.ray.bridge import Bridge
from sweeps.futures import future_of
from sweeps.study.point import Point

log = logging.getLogger(__name__)

PROXY_RETRIES = 3
"""Proxies of a trial that may die in a row, without a new step of the trial in between."""
DRAWING_SECONDS = 1.0
"""How long Tune's loop waits for a point that is being drawn."""
_KEPT = ("attempt", "checkpoint", "deaths", "furthest")
"""What a trial's next proxy must know from its last one."""


class ProxyTrainable(Trainable):
    """What Tune is given; its processes have `TrialProxy` (`Bridge.join`)."""

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> PlacementGroupFactory:
        """See `resources_of`."""
        return resources_of(config)


def resources_of(config: dict[str, Any]) -> PlacementGroupFactory:
    """What a proxy holds, on the node `config["node"]` if it has room, otherwise where there is."""
    return PlacementGroupFactory(
        [config["held"]], "STRICT_PACK", _soft_target_node_id=config["node"]
    )


class StudySearcher(Searcher):
    """Asks the driver for trials, as many as the cluster holds at a time."""

    def __init__(self, bridge: Bridge) -> None:
        super().__init__(metric="done", mode="max")
        self._bridge = bridge
        self._drawing: Future[Point | None] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Nothing, see `Bridge.__getstate__`."""
        return {}

    def set_max_concurrency(self, max_concurrent: int) -> bool:
        return True

    def suggest(self, trial_id: str) -> Any:
        bridge = self._bridge
        if not bridge.driver.has_room(bridge.fleet.capacity()):
            return None
        if not self._drawn():
            return None
        assert self._drawing is not None
        point, self._drawing = self._drawing.result(), None
        if point is None:
            bridge.finished = not bridge.driver.stop_requested
            return str(Searcher.FINISHED)
        assignment = bridge.driver.start(point)
        bridge.numbers[trial_id] = assignment.trial
        return {**asdict(assignment), **bridge.place(assignment.trial)}

    def _drawn(self) -> bool:
        """Whether the next point is there; a slow sampler draws it in a thread of its own."""
        driver = self._bridge.driver
        if self._drawing is None:
            thread = "sampler" if driver.study.is_slow else None
            self._drawing = future_of(driver.next_point, thread)
        if not driver.running:  # nobody else waits; Tune would sleep for a second
            wait([self._drawing], DRAWING_SECONDS)
        return self._drawing.done()

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        if error or result is None:
            self._bridge.lost(trial_id, "the trial's proxy failed; see Ray's logs")
        else:
            self._bridge.take(trial_id, result)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study is the state."""

    def restore(self, checkpoint_path: str) -> None:
        raise RuntimeError("a sweep is taken up from its study, never from Ray's state")


class ReportScheduler(FIFOScheduler):
    """Passes reports to the driver; retried trials go first (Tune would put them last)."""

    def __init__(self, bridge: Bridge) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._bridge = bridge
        self._known: set[str] = set()
        self._again: list[Trial] = []

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        return True

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """Place a trial anew: Tune 2.60 says so before it queues a trial again, when what the trial
        holds may still change."""
        number = trial.config["trial"]
        if trial.status == Trial.ERROR and number in self._bridge.driver.running:
            self._bridge.fleet.ensure()  # its node may have died, and others come
            trial.config.update(self._bridge.place(number))
            trial.update_resources(resources_of(trial.config))

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        self._bridge.join(tune_controller)
        if trial.trial_id not in self._known:
            self._known.add(trial.trial_id)
            return
        bridge, number = self._bridge, trial.config["trial"]
        log.warning("trial %d: its proxy died, another one follows", number)
        if number in bridge.attempts_on and not bridge.fleet.lives(bridge.attempts_on[number][1]):
            trial.max_failures += 1  # it died with its node, which is no fault of the trial
        trial.config["hosts"] = bridge.fleet.names()  # the next proxy looks for its slot
        self._again.append(trial)

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """Not one whose proxy has its place and starts: Tune would end that for a free one."""
        self._again = [trial for trial in self._again if trial.status == Trial.PENDING]
        others = sorted(tune_controller.get_live_trials(), key=lambda trial: trial.config["trial"])
        pending = (trial for trial in others if trial.status == Trial.PENDING)
        has_place = self._bridge.has_place
        return next((trial for trial in (*self._again, *pending) if not has_place(trial)), None)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        if result["furthest"] > trial.config.get("furthest", -1):
            trial.max_failures = trial.num_failures + PROXY_RETRIES
        trial.config.update({name: result[name] for name in _KEPT})
        self._bridge.take(trial.trial_id, result)
        return str(TrialScheduler.CONTINUE)


class Watch(Callback):
    """Makes hosts on nodes that join, and ends the trials that Tune has given up."""

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        bridge = self._bridge
        bridge.fleet.ensure_now_and_then()
        bridge.driver.tick()
        for number, kind in bridge.driver.overdue():
            bridge.fleet.cancel_anywhere(number, kind)
        for number, host in bridge.fleet.hangs.unheard():
            bridge.end_proxy(number, host)

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        self._bridge.lost(trial.trial_id, f"the trial's proxy failed: {trial.error_file or ''}")
