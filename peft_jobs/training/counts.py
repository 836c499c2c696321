"""How far a trial has come."""

from dataclasses import dataclass, field
from typing import Any

from peft_jobs.host.checkpoint import CheckpointState


@dataclass
class Counts:
    """How far a trial has come; filled in as it goes, so that an error leaves it readable."""

    step: int = 0
    samples: int = 0
    tokens: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    """The latest of each name."""
    evaluated_at: int | None = None
    """Step of the last evaluation."""
    reported_at: int = 0
    """Last step of which this attempt has made its reports: they are made once."""

    def as_result_fields(self) -> dict[str, Any]:
        """As the fields of a TrialResult."""
        return {
            "step": self.step,
            "samples": self.samples,
            "tokens": self.tokens,
            "metrics": dict(self.metrics),
        }

    def go_back(self, state: CheckpointState | None) -> None:
        """Stand where a checkpoint was left, or at the trial's start."""
        self.step = 0 if state is None else state.step
        self.samples = 0 if state is None else state.samples
        self.tokens = 0 if state is None else state.tokens
        self.metrics = {} if state is None else dict(state.metrics)
        self.evaluated_at = None if state is None else state.evaluated_at
