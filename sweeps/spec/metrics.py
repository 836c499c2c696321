"""The numbers of a trial, by the names that constraints and fronts use for them."""

from collections.abc import Mapping
from typing import Literal, Protocol

Direction = Literal["minimize", "maximize"]

_MORE_IS_BETTER = (
    *("accuracy", "precision", "recall", "f1", "macro_f1", "micro_f1"),
    *("exact_match", "rouge1", "rouge2", "rougeL", "bleu"),
)
_LESS_IS_BETTER = ("loss", "perplexity", "bits_per_byte")


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


def default_direction(name: str) -> Direction | None:
    """Which way a metric such as `validation/f1` is better; None for one that is not ours."""
    last = name.rpartition("/")[2]
    if last in _MORE_IS_BETTER:
        return "maximize"
    return "minimize" if last in _LESS_IS_BETTER else None
