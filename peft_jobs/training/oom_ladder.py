"""The ladder: what an attempt does when its memory runs out, one rung after the other.

Each failure is recorded and the settings go one step down (`memory_settings.below`). An evaluation
is made again in place; training is begun again, by the engine, from the latest checkpoint.
"""

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from peft_jobs.device.memory import RanOut, release, tried
from peft_jobs.errors import OutOfMemory
from peft_jobs.spec import TrialSpec
from peft_jobs.spec.memory_settings import LadderRung, Phase, below, settings_of, with_settings
from peft_jobs.training.counts import Counts

log = logging.getLogger(__name__)
T = TypeVar("T")
Metrics = dict[str, float]


class OomLadder:
    """Where on the ladder an attempt stands."""

    def __init__(
        self, spec: TrialSpec, device: torch.device, rungs: Sequence[LadderRung] = ()
    ) -> None:
        """`rungs` are those that the trial has left behind in earlier attempts."""
        self.device = device
        self.rungs = list(rungs)
        self.peaks: Callable[[], dict[str, int]] = dict
        """Memory peaks with the present settings."""
        self.spec = spec
        """The trial with the present settings."""
        if self.rungs:
            self._step_down(self.rungs[-1])

    def tried(self, phase: Phase, counts: Counts, run: Callable[[TrialSpec], T]) -> T | None:
        """What `run` gives with the present settings; None if memory ran out and there are others
        to try now. Raises OutOfMemory if there are none."""
        found = tried(lambda: run(self.spec))
        if not isinstance(found, RanOut):
            return found
        rung = LadderRung(
            phase=phase,
            step=counts.step,
            tried=settings_of(self.spec),
            peak=self.peaks(),
            error=found.text,
        )
        self.rungs.append(rung)
        release(self.device)
        self._step_down(rung)
        settings = settings_of(self.spec)
        log.warning("out of memory (%s): %s; going on with %s", phase, found.text, settings)
        return None

    def measured(self, counts: Counts, measure: Callable[[TrialSpec], T]) -> T:
        """What an evaluation gives, in as small batches as memory asks for. Raises OutOfMemory."""
        while True:
            metrics = self.tried("evaluate", counts, measure)
            if metrics is not None:
                return metrics

    def _step_down(self, rung: LadderRung) -> None:
        settings = below(rung.tried, rung.phase)
        if settings is None:
            raise OutOfMemory(
                f"out of memory with nothing left to save ({rung.phase}): {rung.error}"
            )
        self.spec = with_settings(self.spec, settings)
