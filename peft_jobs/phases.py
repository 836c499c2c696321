"""Seconds of a trial by phase; nested phases are not counted twice."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from peft_jobs.activity import at_stage


class Phases:
    """`seconds` holds the wall time of each phase so far, without the phases inside it."""

    def __init__(self, *names: str) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(names, 0.0)
        self._inside: list[float] = []

    def add(self, seconds: Mapping[str, float]) -> None:
        """Count what was spent before, in an earlier attempt."""
        for name, spent in seconds.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + spent

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time of the block to `name`, also when it raises."""
        start = time.perf_counter()
        self._inside.append(0.0)
        try:
            with at_stage(name):
                yield
        finally:
            spent = time.perf_counter() - start
            nested = self._inside.pop()
            self.seconds[name] = self.seconds.get(name, 0.0) + spent - nested
            if self._inside:
                self._inside[-1] += spent
