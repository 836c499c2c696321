"""How far predictions were from what was measured, by device: of trials that had it to themselves.

A trial that shared steps with others has a share of their memory and of their time: nothing of it
was predicted.
"""

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from pydantic import ValidationError

from peft_jobs import State, TrialResult
from sweeps.records.layout import SweepFolder
from sweeps.records.reader import recorded_names

MAX_RESULTS = 500
"""Of a storage that are looked at, the newest ones."""
_PEAK, _PACK_PEAK = "peak_allocated_bytes", "pack_peak_allocated_bytes"


@dataclass(frozen=True)
class PredictionError:
    """Of the trials of one device; ratios are of what was measured to what was predicted."""

    device: str
    trials: int
    memory: tuple[float, float, float] | None
    """Least, median and largest ratio of peaks; None on a CPU, whose tensors are not measured."""
    seconds: tuple[float, float, float]
    """The same of training time, at the device's peak rates."""

    @property
    def efficiency(self) -> float:
        """Of its peak rates, what the median trial reached."""
        return 1 / self.seconds[1]

    @property
    def spread(self) -> float:
        """By how much trials were faster or slower than the median one, at most, as a factor."""
        least, middle, largest = self.seconds
        return max(largest / middle, middle / least)

    def sentence(self) -> str:
        """In one line."""
        told = f"{self.trials} trials on {self.device}: "
        if self.memory is not None:
            low, middle, high = (f"{ratio:.2f}" for ratio in self.memory)
            told += f"memory was {middle} times the prediction ({low} to {high}), "
        low, middle, high = (f"{ratio:.2f}" for ratio in self.seconds)
        return told + f"training took {middle} times as long ({low} to {high})"


def prediction_errors(results: Iterable[TrialResult]) -> list[PredictionError]:
    """Of the results that hold what was predicted, by device, the one with most trials first."""
    memory: dict[str, list[float]] = defaultdict(list)
    seconds: dict[str, list[float]] = defaultdict(list)
    for result in results:
        told = result.predicted.get("seconds_per_sample", 0.0) * result.samples
        spent, device = result.seconds.get("train", 0.0), str(result.provenance.get("device"))
        if result.state is not State.COMPLETE or not told or not spent or not _had_it_alone(result):
            continue
        seconds[device].append(spent / told)
        peak, predicted = result.memory.get(_PEAK), result.predicted.get(f"memory/{_PEAK}")
        if peak and predicted and not result.memory_ladder:
            memory[device].append(peak / predicted)
    found = [
        PredictionError(device, len(ratios), _ends(memory[device]), _ends(ratios) or (1, 1, 1))
        for device, ratios in seconds.items()
    ]
    return sorted(found, key=lambda error: -error.trials)


def recorded_results(storage: Path) -> list[TrialResult]:
    """The newest results of all sweeps of a folder, as far as they can be read; [] for a store."""
    files: list[Path] = []
    for name in recorded_names(storage):
        folder = SweepFolder(storage, name)
        if not folder.in_store:
            files += [folder.result(number) for number in folder.results()]
    files.sort(key=lambda file: file.stat().st_mtime, reverse=True)
    found = []
    for file in files[:MAX_RESULTS]:
        try:
            found.append(TrialResult.model_validate(json.loads(file.read_text(encoding="utf-8"))))
        except (OSError, ValueError, ValidationError):  # of a later version, or being written
            continue
    return found


def _had_it_alone(result: TrialResult) -> bool:
    if result.provenance.get("engine") != "packed":
        return True
    return _PACK_PEAK in result.memory and result.memory[_PACK_PEAK] == result.memory.get(_PEAK)


def _ends(ratios: list[float]) -> tuple[float, float, float] | None:
    return (min(ratios), median(ratios), max(ratios)) if ratios else None
