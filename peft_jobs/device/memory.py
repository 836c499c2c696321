"""Peak memory of one trial, not of the life of its process.

The GPUs' counters are reset at the start of the trial. The resident set's high-water mark (VmHWM)
is reset through /proc/self/clear_refs where the kernel lets us; elsewhere a thread samples it.
Either way `peak_rss_bytes` starts from what the process held already: the resident base counts.
"""

import ctypes
import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil
import torch

from peft_jobs.errors import OutOfMemory

T = TypeVar("T")
_ALLOCATIONS = (
    "DefaultCPUAllocator: can't allocate memory",
    "std::bad_alloc",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",  # no room for the handle's workspace, in a process that works
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",
)
"""What torch says in a plain RuntimeError where memory ran out beside its own GPU allocator."""
SAMPLING_SECONDS = 0.02
"""Between samples where the high-water mark cannot be reset; shorter peaks go unseen."""


@contextmanager
def peak_memory(
    device: torch.device, gives_back: bool = True
) -> Iterator[Callable[[], dict[str, int]]]:
    """Gives a function that tells the peaks, in bytes, since the block was entered.

    Keys: peak_rss_bytes; on a GPU also peak_allocated_bytes, peak_reserved_bytes and
    peak_device_bytes (reserved, and what the card holds beside), of the fullest GPU where the base
    is spread over several. One trial of a process at a time: the counters are the process's own.
    What is no longer used is given back before, or is counted.
    """
    if gives_back:
        release(device)
    memory = torch.get_device_module(device)
    gpus = range(memory.device_count() if device.type != "cpu" else 0)
    for gpu in gpus:
        memory.reset_peak_memory_stats(gpu)
    with _peak_rss() as rss:

        def peaks() -> dict[str, int]:
            found = {"peak_rss_bytes": rss()}
            if gpus:  # those that this process does not use have counted nothing
                found["peak_allocated_bytes"] = max(map(memory.max_memory_allocated, gpus))
                found["peak_reserved_bytes"] = max(map(memory.max_memory_reserved, gpus))
                found["peak_device_bytes"] = max(
                    memory.max_memory_reserved(gpu) + _beside(memory, gpu) for gpu in gpus
                )
            return found

        yield peaks


def _beside(memory: Any, gpu: int) -> int:
    """Bytes of a GPU that are taken now and are not torch's: CUDA's context and libraries, managed
    memory, and whatever other processes have there."""
    free, total = memory.mem_get_info(gpu)
    return max(0, int(total - free - memory.memory_reserved(gpu)))


@dataclass(frozen=True)
class RanOut:
    """Memory ran out in a call; `text` is the first line of what was said."""

    text: str


def tried(call: Callable[[], T]) -> T | RanOut:
    """What `call` gives, or RanOut if memory ran out in it.

    While an exception is handled, its traceback holds the frames of the call, and they its tensors:
    nothing can be given back. Only when this has returned is the error gone, and `release` gives
    back what the call had. Whatever else goes wrong is raised, and so is an OutOfMemory: who raises
    that has tried to save memory already.
    """
    try:
        return call()
    except OutOfMemory:
        raise
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        text = next(iter(str(error).splitlines()), "") or type(error).__name__
    return RanOut(text)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the host."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _ALLOCATIONS)


def release(device: torch.device) -> None:
    """Give back what is no longer used, so that a trial does not pay for the one before it."""
    gc.collect()
    if device.type != "cpu":
        memory = torch.get_device_module(device)
        memory.synchronize(device)
        memory.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
    if trim is not None:
        trim(0)


@contextmanager
def _peak_rss() -> Iterator[Callable[[], int]]:
    if reset_high_water_mark():
        yield high_water_mark
    else:
        with sampled_rss() as rss:
            yield rss


def reset_high_water_mark() -> bool:
    """Start the process's VmHWM anew at its resident set; False where that is not possible."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # proc(5)
        high_water_mark()
    except (OSError, ValueError):
        return False
    return True


def high_water_mark() -> int:
    """VmHWM of this process in bytes. Raises OSError or ValueError where /proc has none."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise ValueError("/proc/self/status has no VmHWM")


@contextmanager
def sampled_rss() -> Iterator[Callable[[], int]]:
    """The largest resident set, in bytes, of those sampled every SAMPLING_SECONDS and now."""
    process, done = psutil.Process(), threading.Event()
    peak = process.memory_info().rss

    def sample() -> int:
        nonlocal peak
        peak = max(peak, process.memory_info().rss)
        return peak

    def watch() -> None:
        while not done.wait(SAMPLING_SECONDS):
            sample()

    thread = threading.Thread(target=watch, name="peak-memory", daemon=True)
    thread.start()
    try:
        yield sample
    finally:
        done.set()
        thread.join()
