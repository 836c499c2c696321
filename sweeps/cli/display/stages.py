"""The stages of a sweep before its first trial, with their times."""

import time
from collections.abc import Callable

from sweeps.cli.screen import clock

_WORDS = {
    "": "starting the host",
    "ray": "starting Ray",
    "load": "loading the base",
    "quantize": "quantizing the base",
    "tokenize": "reading the data",
    "evaluate": "scoring the base",
    "slots": "measuring how many trials share a step",
    "threads": "measuring what fewer threads take",
}
WORTH_SECONDS = 1.0
"""A stage that took less is not told."""


class Stages:
    """Adds up the time of each stage, as it is seen now and then."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._begun = self._seen = now()
        self._stage = ""
        self.seconds: dict[str, float] = {}
        """By stage, in words."""

    def see(self, stage: str) -> None:
        """The work is at `stage` now; the time since the last look was that one's."""
        now, word = self._now(), _WORDS.get(self._stage, self._stage)
        self.seconds[word] = self.seconds.get(word, 0.0) + now - self._seen
        self._stage, self._seen = stage, now

    @property
    def current(self) -> str:
        """What the work is at, and for how long there is work."""
        words = _WORDS.get(self._stage, self._stage)
        return f"{words[0].upper()}{words[1:]} ...  {clock(self._now() - self._begun)}"

    def told(self) -> dict[str, str]:
        """All stages that took time, in order, as a line of the plan; no line if none did."""
        words = [f"{w} {s:.0f} s" for w, s in self.seconds.items() if s >= WORTH_SECONDS]
        return {"started": ", ".join(words)} if words else {}
