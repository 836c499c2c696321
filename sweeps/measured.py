"""The numbers of a trial, by the names that constraints and fronts use for them."""

from collections.abc import Mapping
from typing import Protocol


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
