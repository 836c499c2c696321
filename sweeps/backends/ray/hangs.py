"""Finds hosts and proxies that hang: they are ended, and what they did goes on as after a death.

A process that is stopped, a kernel that never returns, a deadlock in a person's metric, a network's
file that is never read: for Ray such a process lives. Each host is asked, all the time, when its
engine last got on and which of its trials nobody asks about; answers are not waited for.
"""

import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ray

log = logging.getLogger(__name__)

SILENT_SECONDS = 60.0
"""Without an answer of a host that has answered before, or without a question of a proxy, which
asks every LONG_POLL_SECONDS."""


@dataclass
class _Watched:
    actor: Any
    asked: Any = None
    since: float = 0.0
    has_answered: bool = False
    """Since it was started: a host that starts imports for long."""
    unheard: dict[int, float] = field(default_factory=dict)
    pid: int | None = None
    """Of the process that answered last."""
    ended_pid: int | None = None
    """Of the process that was ended, and may still answer: its successor is not ended for it."""


class Hangs:
    """Watches hosts by name. `stall_seconds` is the sweep's; None does not look at engines."""

    def __init__(
        self, stall_seconds: float | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stall, self._clock = stall_seconds, clock
        self._hosts: dict[str, _Watched] = {}
        self._killed: dict[int, float] = {}
        """When a trial's proxy was last ended."""

    def look(self, actors: dict[str, Any], trials: list[int]) -> None:
        """Take the answers that have come, ask again about the `trials` that run, and end the
        hosts that hang."""
        self._hosts = {
            name: known
            if (known := self._hosts.get(name)) is not None and known.actor is actor
            else _Watched(actor)
            for name, actor in actors.items()
        }
        for name, host in self._hosts.items():
            reason = self._reason(host, trials)
            if reason is not None:
                log.warning("%s %s: it is ended, and its trials go on in another one", name, reason)
                ray.kill(host.actor, no_restart=False)
                host.asked, host.has_answered, host.unheard = None, False, {}
                host.ended_pid = host.pid

    def unheard(self) -> list[tuple[int, str]]:
        """Trials that nobody asks their host about, with its name; each once in SILENT_SECONDS."""
        now, found = self._clock(), []
        for name, host in self._hosts.items():
            for trial, seconds in host.unheard.items():
                last = self._killed.get(trial)
                if seconds > SILENT_SECONDS and (last is None or now - last > SILENT_SECONDS):
                    self._killed[trial] = now
                    found.append((trial, name))
        return found

    def _reason(self, host: _Watched, trials: list[int]) -> str | None:
        """Why a host must end; None if it need not."""
        now = self._clock()
        if host.asked is not None and ray.wait([host.asked], timeout=0)[0]:
            call, host.asked = host.asked, None
            host.has_answered = False
            with contextlib.suppress(ray.exceptions.RayError):  # it has died, and starts anew
                answer = ray.get(call)
                host.pid = answer["pid"]
                if host.pid != host.ended_pid:
                    host.has_answered, host.unheard = True, dict(answer["unheard_seconds"])
                    if self._stall is not None and answer["silent_seconds"] > self._stall:
                        return f"has made no step for {answer['silent_seconds']:.0f} s"
        if host.asked is None:
            host.asked, host.since = host.actor.pulse.remote(trials), now
        elif host.has_answered and now - host.since > SILENT_SECONDS:
            return f"has not answered for {now - host.since:.0f} s"
        return None
