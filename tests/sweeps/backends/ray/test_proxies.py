"""Processes of proxies: as many as slots, started before their trials, light, and nicer than hosts.

What is kept and given out is tried without Ray; what is started, on a cluster of this machine.
"""

import contextlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import ray
from ray._private.state import actors
from ray.tune import PlacementGroupFactory

from sweeps import SweepSpec
from sweeps.backends.ray.proxies import WAIT_SECONDS, KeptProxies, Proxies
from sweeps.backends.ray.proxy import NICENESS
from sweeps.driver.driver import Driver
from sweeps.run import LaunchCallbacks, launch
from tests.support.watching import watching

ON_A, ON_B = (PlacementGroupFactory([{"CPU": 1}], _soft_target_node_id=node) for node in "ab")


def test_every_proxy_whose_trial_has_ended_is_kept_for_a_trial_that_holds_the_same() -> None:
    kept = KeptProxies(lambda: False)
    assert all(kept.cache_object(ON_A, actor) for actor in ("first", "second", "third"))
    assert kept.has_cached_object(ON_A)
    assert not kept.has_cached_object(ON_B)
    assert list(kept.flush_cached_objects()) == []
    given = {kept.pop_cached_object(ON_A) for _ in range(3)}
    assert given == {"first", "second", "third"}
    assert kept.pop_cached_object(ON_A) is None
    kept.cache_object(ON_B, "fourth")
    assert list(kept.flush_cached_objects(force_all=True)) == ["fourth"]
    assert not kept.has_cached_object(ON_B)


def test_kept_proxies_make_room_for_a_trial_that_has_waited() -> None:
    waits, now = [False], [0.0]
    kept = KeptProxies(lambda: waits[0], lambda: now[0])
    kept.cache_object(ON_A, "there")
    ended = []
    for waits[0], now[0] in (
        (True, 0.0),
        (True, WAIT_SECONDS),
        (False, WAIT_SECONDS + 1),
        (True, WAIT_SECONDS + 2),
        (True, 2 * WAIT_SECONDS + 2),
    ):
        ended.append(list(kept.flush_cached_objects()))
    assert ended == [[]] * 5, "nobody has waited for longer"
    now[0] += 0.1
    assert list(kept.flush_cached_objects()) == ["there"]


def test_processes_that_wait_are_given_out_on_their_node_and_the_others_are_ended(
    monkeypatch: Any,
) -> None:
    ended: list[Any] = []
    monkeypatch.setattr(ray, "kill", ended.append)
    monkeypatch.setattr(
        "sweeps.backends.ray.proxies.placement_group_table",
        lambda group: {"bundles_to_node_id": {0: group}},
    )
    proxies = Proxies()
    proxies._waiting.update(a=["a1", "a2", "a3"], b=["b1"])
    proxies.keep(3)
    assert ended == ["a3"]
    config = {"held": {"CPU": 1}, "places": ("host-a-cpu", "host-b-cpu")}
    assert proxies.take({**config, "held": {"GPU": 1}}, "a") is None, "Ray says which GPU"
    assert proxies.take({**config, "places": ("host-b-cpu",)}, "a") is None, "the driver chose none"
    assert [proxies.take(config, node) for node in "aabbc"] == ["a2", "a1", "b1", None, None]
    proxies.keep(0)
    assert ended == ["a3"]


class Watched:
    """The processes below this one that Ray titles, as they were seen."""

    def __init__(self) -> None:
        self.seen: dict[int, tuple[str, int, bool]] = {}

    def look(self) -> None:
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error, OSError, IndexError):
                title, _, _ = child.cmdline()[0].partition(".")
                maps = Path(f"/proc/{child.pid}/maps").read_text()
                is_heavy = "torch" in maps or "pyarrow" in maps
                self.seen[child.pid] = (title, child.nice(), is_heavy)

    def of(self, title: str) -> list[tuple[int, bool]]:
        return [(nice, heavy) for name, nice, heavy in self.seen.values() if name == title]


def test_a_sweep_has_a_light_process_for_each_slot_started_while_its_host_loads(
    sweep: Callable[..., SweepSpec], monkeypatch: Any
) -> None:
    own, slots = psutil.Process().nice(), 3
    looks: Counter[str] = Counter()
    nodes = ray.nodes

    def counted() -> Any:
        looks["nodes"] += 1
        return nodes()

    monkeypatch.setattr(ray, "nodes", counted)
    prepared: list[int] = []
    spec = sweep(
        resources={
            "backend": "ray",
            "slots_per_gpu": slots,
            "engine_options": {"num_slots": slots, "step_seconds": 0.02},
        },
        budget={"n_trials": 9, "max_samples": 80, "rungs": [20]},
        sampler="random",
        pruner={"type": "successive_halving", "reduction_factor": 2},
    )
    turns: list[int] = []

    def on_change(driver: Driver) -> None:
        turns.append(looks["nodes"])

    watched = Watched()
    with watching(watched.look, 0.3):
        outcome = launch(
            spec,
            callbacks=LaunchCallbacks(
                on_prepared=lambda *_: prepared.append(len(actors())),
                on_change=on_change,
            ),
        )
    assert outcome.status == "complete"
    assert watched.of("ray::TrialProxy") == [(min(19, own + NICENESS), False)] * slots
    assert watched.of("ray::HostActor")[0][0] == own
    (known,) = prepared  # to Ray, which hears of each in its turn
    assert 1 < known <= slots + 1, "they were asked for with the host, not with their trials"
    assert len(turns) >= 18, "a report at the rung and an end of each trial"
    assert looks["nodes"] < len(turns)
