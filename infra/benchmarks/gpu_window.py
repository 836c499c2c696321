"""What a GPU and its driver do during some steps of a trial: launches, copies, waits, gaps.

By torch's profiler, from one report of a trial to a later one, so it needs no knowledge of how an
engine makes its steps. Where there is no GPU, operators are counted all the same.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

MARK = "peft-sweeps: report"
COUNTED = {
    "launches": ("LaunchKernel", "GraphLaunch"),
    "copies": ("cudaMemcpy",),
    "synchronisations": ("Synchronize",),
}
"""What is told -> parts of the names that CUDA's runtime has for it. A copy from memory that is not
pinned waits as well, and so does `.item()`, which is a copy and a synchronisation."""


class Window:
    """Give it to `runs.run` as `watch`: it profiles from the report of step `first` to `last`'s."""

    def __init__(self, first: int, last: int) -> None:
        self.first, self.last = first, last
        self._profile: Any = None
        self._found: dict[str, float] | None = None

    def __call__(self, step: int) -> None:
        if step == self.first:
            kinds = [ProfilerActivity.CPU]
            if torch.cuda.is_available():
                torch.cuda.synchronize()
                kinds.append(ProfilerActivity.CUDA)
            self._profile = profile(activities=kinds)
            self._profile.start()
        if self._profile is None or self._found is not None:
            return
        with record_function(MARK):
            pass
        if step >= self.last:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self._profile.stop()
            self._found = per_step(self._profile.events())

    @property
    def found(self) -> dict[str, float]:
        """Means of a step. Raises RuntimeError if the trial ended before the window did."""
        if self._found is None:
            raise RuntimeError(f"no report of step {self.last} was heard")
        return self._found


@dataclass(frozen=True)
class Busy:
    """When the GPU had work: disjoint spans in microseconds, ascending."""

    spans: Sequence[tuple[float, float]]

    @classmethod
    def of(cls, spans: Iterable[tuple[float, float]]) -> "Busy":
        joined: list[tuple[float, float]] = []
        for start, end in sorted(spans):
            if joined and start <= joined[-1][1]:
                joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
            else:
                joined.append((start, end))
        return cls(joined)

    @property
    def total(self) -> float:
        return sum(end - start for start, end in self.spans)

    def gap_at(self, time: float) -> float:
        """How long the GPU had nothing to do around `time`."""
        before = [end for start, end in self.spans if start <= time]
        after = [start for start, _ in self.spans if start > time]
        return max(0.0, after[0] - max(before)) if before and after else 0.0


def per_step(events: Iterable[Any]) -> dict[str, float]:
    """Means of a step between the first mark and the last; milliseconds are the profiler's."""
    events = list(events)
    marks = sorted(event.time_range.start for event in events if is_mark(event))
    begin, end = marks[0], marks[-1]
    num_steps = len(marks) - 1
    inside = [e for e in events if begin <= e.time_range.start < end and e.name != MARK]
    counts = dict.fromkeys(COUNTED, 0) | {"operators": 0}
    spans = []
    for event in inside:
        if event.device_type == DeviceType.CUDA:
            if not getattr(event, "is_user_annotation", False):
                spans.append((event.time_range.start, event.time_range.end))
            continue
        counts["operators"] += event.name.startswith("aten::")
        for name, parts in COUNTED.items():
            counts[name] += any(part in event.name for part in parts)
    busy = Busy.of(spans)
    told = {name: count / num_steps for name, count in counts.items()}
    return told | {
        "kernels": len(spans) / num_steps,
        "gpu_ms": busy.total / num_steps / 1e3,
        "gap_between_steps_ms": sum(map(busy.gap_at, marks[1:-1])) / max(1, num_steps - 1) / 1e3,
        "profiled_step_ms": (end - begin) / num_steps / 1e3,
    }


def is_mark(event: Any) -> bool:
    """A report; the profiler shows each on the GPU's side too, if a kernel is near."""
    return bool(event.name == MARK and event.device_type == DeviceType.CPU)
