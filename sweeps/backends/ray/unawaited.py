"""Calls that nobody waits for: what they raise is logged when it has come."""

import logging
from typing import Any

import ray

from peft_jobs import Fenced

log = logging.getLogger(__name__)


class Unawaited:
    """A driver's loop must not stand still because one host does."""

    def __init__(self) -> None:
        self._calls: dict[Any, str] = {}

    def add(self, call: Any, told: str) -> None:
        """Log `told` with the reason should the call fail."""
        self._calls[call] = told

    def look(self) -> None:
        """Forget the calls that are over."""
        if not self._calls:
            return
        for call in ray.wait(list(self._calls), num_returns=len(self._calls), timeout=0)[0]:
            told = self._calls.pop(call)
            try:
                ray.get(call)
            except (ray.exceptions.RayError, KeyError, Fenced) as error:
                log.warning("%s: %r", told, error)
