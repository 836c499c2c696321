"""Which deaths of hosts a trial is held to account for; with a host that is none."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import ray

from sweeps.backends.ray import proxy
from sweeps.backends.ray.proxy import MAX_HOST_DEATHS, TrialProxy


class Host:
    """Answers each call by the next of `answers`; one that is an error is raised by `ray.get`."""

    def __init__(self, *answers: tuple[str, Any]) -> None:
        self.answers: Iterator[tuple[str, Any]] = iter(answers)
        self.attempts: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return type("Call", (), {"remote": lambda _self, *given: self.take(name, given)})()

    def take(self, name: str, given: tuple[Any, ...]) -> Any:
        if name == "submit":
            self.attempts.append(given[0]["attempt"])
        wanted, answer = next(self.answers)
        assert name == wanted
        return answer


def give(answer: Any) -> Any:
    if isinstance(answer, Exception):
        raise answer
    return answer


def proxy_on(host: Host, monkeypatch: pytest.MonkeyPatch, deaths: int, **config: Any) -> TrialProxy:
    monkeypatch.setattr(ray, "get", give)
    monkeypatch.setattr(ray, "get_actor", lambda name: host)
    monkeypatch.setattr(proxy, "_host_here", lambda config: "host")
    monkeypatch.setattr(proxy, "ASK_AGAIN_SECONDS", 0.0)
    made = TrialProxy.__new__(TrialProxy)
    made.reset(
        {"trial": 7, "attempt": 4, "checkpoint": None, "deaths": deaths}
        | {"spec_json": "{}", "directory": "trials/7/attempts/4", **config}
    )
    return made


DIED = ray.exceptions.RayActorError()
ENDED = ("next_report", {"type": "end"})


def test_a_host_that_dies_while_a_trial_waits_for_its_place_did_not_die_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there, refused, enters = ("current_attempt", None), ("may_enter", False), ("may_enter", True)
    host = Host(
        *(there, refused, refused, ("may_enter", DIED)),
        *(there, enters, ("submit", False), refused, ("may_enter", DIED)),
        *(there, enters, ("submit", True), ENDED),
    )
    result = proxy_on(host, monkeypatch, deaths=MAX_HOST_DEATHS).train()
    assert json.loads(result["message"]) == {"type": "end"}
    assert (result["deaths"], result["attempt"]) == (MAX_HOST_DEATHS, 4)
    assert host.attempts == [4, 4]


@pytest.mark.parametrize("taken", [(("submit", DIED),), (("submit", True), ("next_report", DIED))])
def test_a_host_that_dies_of_its_only_trial_is_its_end(
    monkeypatch: pytest.MonkeyPatch, taken: tuple[tuple[str, Any], ...]
) -> None:
    host = Host(("current_attempt", None), ("may_enter", True), *taken)
    result = proxy_on(host, monkeypatch, deaths=MAX_HOST_DEATHS).train()
    assert json.loads(result["message"])["result"]["kind"] == "lost"
    assert result["deaths"] == MAX_HOST_DEATHS + 1


def test_a_death_beside_others_lets_a_trial_go_on_as_the_next_attempt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entered = ("current_attempt", None), ("may_enter", True), ("submit", True)
    host = Host(*entered, ("next_report", DIED), *entered, ENDED)
    result = proxy_on(host, monkeypatch, deaths=0).train()
    assert (result["deaths"], result["attempt"]) == (1, 5)
    assert host.attempts == [4, 5]


@pytest.mark.parametrize(("config", "attempt"), [({}, 4), ({"hosts": ()}, 5)])
def test_a_trial_whose_hosts_are_all_gone_goes_on_as_the_next_attempt(
    monkeypatch: pytest.MonkeyPatch, config: dict[str, Any], attempt: int
) -> None:
    host = Host(("current_attempt", None), ("may_enter", True), ("submit", True), ENDED)
    proxy_on(host, monkeypatch, 0, **config).train()
    assert host.attempts == [attempt]
