"""How far a trial has come."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from peft_jobs.host.checkpoint import CheckpointState
from peft_jobs.host.result import split_finite


@dataclass
class Counts:
    """How far a trial has come; filled in as it goes, so that an error leaves it readable."""

    step: int = 0
    samples: int = 0
    tokens: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    """The latest of each name."""
    not_finite: tuple[str, ...] = ()
    """Metrics that were NaN or infinite at the last evaluation."""
    evaluated_at: int | None = None
    """Step of the last evaluation."""
    reported_at: int = 0
    """Last step of which this attempt has made its reports: they are made once."""

    def evaluated(self, metrics: Mapping[str, float], split: str) -> dict[str, float]:
        """Take an evaluation's metrics in place of the split's earlier ones; those that are finite.

        What is undefined now, left out or not finite, must not keep an earlier value.
        """
        found, not_finite = split_finite(metrics)
        stale = tuple(name for name in self.metrics if name.startswith(f"{split}/"))
        self.metrics = {n: v for n, v in self.metrics.items() if n not in stale} | found
        others = (name for name in self.not_finite if not name.startswith(f"{split}/"))
        self.not_finite = (*others, *not_finite)
        return found

    def as_result_fields(self) -> dict[str, Any]:
        """As the fields of a TrialResult."""
        return {
            "step": self.step,
            "samples": self.samples,
            "tokens": self.tokens,
            "metrics": dict(self.metrics),
            "not_finite": self.not_finite,
        }

    def go_back(self, state: CheckpointState | None) -> None:
        """Stand where a checkpoint was left, or at the trial's start."""
        self.step = 0 if state is None else state.step
        self.samples = 0 if state is None else state.samples
        self.tokens = 0 if state is None else state.tokens
        self.metrics = {} if state is None else dict(state.metrics)
        self.not_finite = () if state is None else state.not_finite
        self.evaluated_at = None if state is None else state.evaluated_at
