"""Hosts that do not answer or get on, and proxies that do not ask; with actors that are none."""

from typing import Any

import pytest
import ray

from sweeps.backends.ray import hangs
from sweeps.backends.ray.hangs import SILENT_SECONDS, Hangs


def answer(silent: float, unheard: dict[int, float] | None = None, pid: int = 1) -> dict[str, Any]:
    return {"pid": pid, "silent_seconds": silent, "unheard_seconds": unheard or {}}


class Cluster:
    """In place of Ray's calls: answers that a test gives, or does not."""

    def __init__(self) -> None:
        self.answer: dict[str, Any] | None = answer(0.0)
        self.killed: list[Any] = []
        self.now = 0.0

    @property
    def pulse(self) -> "Cluster":
        return self

    def remote(self, trials: list[int]) -> object:
        return object()

    def wait(self, calls: list[object], timeout: float) -> tuple[list[object], list[object]]:
        return (calls, []) if self.answer is not None else ([], calls)

    def get(self, call: object) -> Any:
        return self.answer

    def kill(self, actor: object, no_restart: bool = True) -> None:
        assert not no_restart
        self.killed.append(actor)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    cluster = Cluster()
    for name in ("wait", "get", "kill"):
        monkeypatch.setattr(ray, name, getattr(cluster, name))
    return cluster


def watch(cluster: Cluster, stall: float | None = 100.0) -> Any:
    found = Hangs(stall, clock=lambda: cluster.now)

    def look(seconds: float) -> Hangs:
        cluster.now += seconds
        found.look({"host": cluster}, [0, 1])
        return found

    return look


def test_a_host_that_answered_and_then_does_not_is_ended_once(cluster: Cluster) -> None:
    look = watch(cluster)
    look(0)
    look(1)
    cluster.answer = None
    look(1)
    look(SILENT_SECONDS - 1)
    assert cluster.killed == []
    look(2)
    assert cluster.killed == [cluster]
    look(10 * SILENT_SECONDS)
    look(10 * SILENT_SECONDS)
    assert cluster.killed == [cluster], "its successor may take long to start"


def test_a_host_that_has_never_answered_is_starting(cluster: Cluster) -> None:
    cluster.answer = None
    look = watch(cluster)
    for _ in range(5):
        look(SILENT_SECONDS)
    assert cluster.killed == []


@pytest.mark.parametrize(("stall", "ends"), [(100.0, True), (200.0, False), (None, False)])
def test_an_engine_that_makes_no_step(cluster: Cluster, stall: float | None, ends: bool) -> None:
    cluster.answer = answer(150.0)
    look = watch(cluster, stall)
    look(0)
    look(1)
    assert bool(cluster.killed) is ends


def test_a_host_that_is_late_to_die_does_not_end_its_successor(cluster: Cluster) -> None:
    cluster.answer = answer(150.0)
    look = watch(cluster)
    for _ in range(5):
        look(1)
    assert len(cluster.killed) == 1
    cluster.answer = answer(150.0, pid=2)
    look(1)
    look(1)
    assert len(cluster.killed) == 2


def test_a_trial_that_nobody_asks_about_is_told_once_in_a_while(cluster: Cluster) -> None:
    cluster.answer = answer(0.0, {0: 1.0, 1: SILENT_SECONDS + 1})
    look = watch(cluster)
    look(0)
    assert look(1).unheard() == [(1, "host")]
    assert look(1).unheard() == []
    assert look(hangs.SILENT_SECONDS).unheard() == [(1, "host")]
