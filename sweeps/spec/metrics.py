"""The numbers of a trial, by the names that constraints and fronts use for them."""

from collections.abc import Mapping
from typing import Protocol

from peft_jobs import TrialResult
from peft_jobs.spec import TASK_SPECS
from peft_jobs.spec.tasks import Direction

__all__ = ["Direction", "Measured", "as_loss", "default_direction", "numbers", "readable"]

_OF_WRITTEN_TEXTS = ("exact_match", "rouge1", "rouge2", "rougeL", "bleu")
"""Of `evaluation.generation`, where more is better."""


class Measured(Protocol):
    """What a trial's result and its row on the leaderboard both say."""

    @property
    def metrics(self) -> Mapping[str, float]: ...
    @property
    def memory(self) -> Mapping[str, int]: ...
    @property
    def minutes(self) -> float: ...
    @property
    def trainable_parameters(self) -> int | None: ...


def numbers(trial: Measured) -> dict[str, float]:
    """Metrics, memory peaks in bytes as `memory/...`, `trainable_parameters` and `minutes`."""
    found = {"minutes": trial.minutes, **trial.metrics}
    found |= {f"memory/{name}": float(peak) for name, peak in trial.memory.items()}
    if trial.trainable_parameters is not None:
        found["trainable_parameters"] = float(trial.trainable_parameters)
    return found


def readable(result: TrialResult) -> dict[str, float]:
    """Of a result, what a person looks for in Optuna's dashboard beside value and parameters."""
    found: dict[str, float] = {"minutes": round(result.minutes, 3)}
    if result.peak_memory_bytes is not None:
        found["peak_memory_gib"] = round(result.peak_memory_bytes / 2**30, 3)
    if result.trainable_parameters is not None:
        found["trainable_parameters"] = result.trainable_parameters
    return found


def as_loss(value: float, direction: str) -> float:
    """A value of a metric as one to be minimized."""
    return value if direction == "minimize" else -value


def default_direction(name: str) -> Direction | None:
    """Which way a metric such as `validation/f1` is better; None for one that is not ours."""
    last = name.rpartition("/")[2]
    if last in _OF_WRITTEN_TEXTS:
        return "maximize"
    for task in TASK_SPECS.values():
        for metric, direction in task.METRICS.items():
            if metric.rpartition("/")[2] == last:
                return direction
    return None
