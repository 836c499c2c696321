"""Copies of tensors as they are now, on the CPU, for another thread to write.

The thread that trains asks for them and goes on at once: on a GPU they are made in pinned memory,
in the order of its own work, and only who reads them waits.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from peft_jobs.device.memory import RanOut, tried


class HostCopies:
    """Of `tensors`, made when this is."""

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        arrange: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict,
    ) -> None:
        """`arrange` makes of the copies what is to be written, in the thread that reads them."""
        begun = time.perf_counter()
        self._arrange = arrange
        gpu = next((t.device for t in tensors.values() if t.device.type == "cuda"), None)
        self._events: list[Any] = []
        if gpu is not None:
            self._events.append(_recorded(gpu))
        self._copies = {
            name: _copied(tensor.detach().contiguous()) for name, tensor in tensors.items()
        }
        if gpu is not None:
            self._events.append(_recorded(gpu))
        self._seconds = time.perf_counter() - begun

    def read(self) -> dict[str, Tensor]:
        """The copies, arranged; waits until the device has made them."""
        for event in self._events:
            event.synchronize()
        return self._arrange(self._copies)

    @property
    def seconds(self) -> float:
        """What they cost the thread that trains: its own time, or the device's if that is longer;
        after `read`."""
        if not self._events:
            return self._seconds
        first, last = self._events
        return max(self._seconds, float(first.elapsed_time(last)) / 1000)


def whole(tensor: Tensor) -> Tensor:
    """A part of a copy as a contiguous tensor, made by this thread alone.

    torch's own copy would start a second pool of OpenMP threads, which slows that of the training.
    """
    if tensor.is_contiguous():
        return tensor
    return torch.from_numpy(np.ascontiguousarray(tensor.numpy()))


def _recorded(gpu: torch.device) -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(gpu))
    return event


def _copied(tensor: Tensor) -> Tensor:
    if tensor.device.type == "cuda":
        pinned = tried(lambda: torch.empty_like(tensor, device="cpu", pin_memory=True))
        if not isinstance(pinned, RanOut):
            return pinned.copy_(tensor, non_blocking=True)
    return tensor.to("cpu", copy=True)
