"""Peaks are the trial's own: they see what it held for a moment, and not what came before it."""

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest
import torch

from peft_jobs.device.memory import (
    RanOut,
    is_out_of_memory,
    peak_memory,
    release,
    reset_high_water_mark,
    sampled_rss,
    tried,
)
from peft_jobs.errors import OutOfMemory

MEGABYTE = 2**20
CPU = torch.device("cpu")

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def hold(num_bytes: int, seconds: float = 0.0) -> None:
    held = torch.ones(num_bytes, dtype=torch.uint8)
    threading.Event().wait(seconds)
    assert int(held[-1]) == 1


def test_a_moment_s_memory_counts_and_an_earlier_trial_s_does_not() -> None:
    if not reset_high_water_mark():
        pytest.skip("/proc/self/clear_refs cannot be written here")
    release(CPU)  # what earlier tests have left is given back before it counts
    before = psutil.Process().memory_info().rss
    with peak_memory(CPU) as peaks:
        hold(400 * MEGABYTE)
        large = peaks()["peak_rss_bytes"]
    with peak_memory(CPU) as peaks:
        hold(40 * MEGABYTE)
        small = peaks()["peak_rss_bytes"]
    assert 350 * MEGABYTE < large - before < 450 * MEGABYTE
    assert large - small > 300 * MEGABYTE
    assert small >= psutil.Process().memory_info().rss - 20 * MEGABYTE


def test_sampling_sees_what_is_held_for_longer_than_a_sample() -> None:
    before = psutil.Process().memory_info().rss
    threads = threading.active_count()
    with sampled_rss() as peak:
        hold(200 * MEGABYTE, seconds=0.2)
        found = peak()
    assert 150 * MEGABYTE < found - before < 250 * MEGABYTE
    assert threading.active_count() == threads


@pytest.mark.gpu
@needs_cuda
def test_gpu_peaks_agree_with_the_driver() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    torch.ones(1, device=device)
    with peak_memory(device) as peaks, _driver_peak(device) as driver:
        start = peaks()
        held = torch.ones(600 * MEGABYTE, dtype=torch.uint8, device=device)
        torch.cuda.synchronize(device)
        threading.Event().wait(0.2)
        del held
        found = peaks()
    allocated = found["peak_allocated_bytes"] - start["peak_allocated_bytes"]
    reserved = found["peak_reserved_bytes"] - start["peak_reserved_bytes"]
    assert allocated == 600 * MEGABYTE
    assert found["peak_reserved_bytes"] < found["peak_device_bytes"] <= _total(device)
    assert abs(reserved - driver[0]) < 64 * MEGABYTE
    with peak_memory(device) as peaks:
        assert peaks()["peak_reserved_bytes"] <= start["peak_reserved_bytes"] + 2 * MEGABYTE


def _total(device: torch.device) -> int:
    return int(torch.cuda.mem_get_info(device)[1])


def test_what_a_card_holds_beside_torch_counts_on_the_fullest_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two of 1,000 MB: 200 beside 300 that are reserved now and 500 that were, 600 beside 50."""
    now, were, free = (300, 50), (500, 50), (500, 350)
    told = {
        "device_count": lambda: 2,
        "reset_peak_memory_stats": lambda gpu: None,
        "max_memory_allocated": lambda gpu: were[gpu] - 10,
        "max_memory_reserved": lambda gpu: were[gpu],
        "memory_reserved": lambda gpu: now[gpu],
        "mem_get_info": lambda gpu: (free[gpu], 1000),
    }
    for name, call in told.items():
        monkeypatch.setattr(torch.cuda, name, call)
    with peak_memory(torch.device("cuda"), gives_back=False) as peaks:
        found = peaks()
    assert found["peak_reserved_bytes"] == 500
    assert found["peak_device_bytes"] == 700


class Buffer:
    """What a call holds when memory runs out; it can be watched."""


@pytest.mark.parametrize(
    "error", [MemoryError("no room\nfor all"), torch.OutOfMemoryError("no room"), None]
)
def test_what_a_call_held_is_free_when_memory_ran_out_in_it(error: Exception | None) -> None:
    held: list[weakref.ref[Buffer]] = []

    def call() -> str:
        buffer = Buffer()
        held.append(weakref.ref(buffer))
        if error is not None:
            raise error
        return "all"

    found = tried(call)
    if error is not None:
        error.__traceback__ = None  # this test keeps the error itself
    assert found == ("all" if error is None else RanOut("no room"))
    assert held[0]() is None


@pytest.mark.parametrize("error", [ValueError("wrong"), OutOfMemory("nothing left to save")])
def test_other_errors_and_a_verdict_go_through(error: Exception) -> None:
    def call() -> None:
        raise error

    with pytest.raises(type(error), match=str(error)):
        tried(call)


@contextmanager
def _driver_peak(device: torch.device) -> Iterator[list[int]]:
    """The most memory, in bytes, that the driver saw taken on the whole GPU since the start."""
    start, done = torch.cuda.mem_get_info(device)[0], threading.Event()
    peak = [0]

    def watch() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], start - torch.cuda.mem_get_info(device)[0])

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize(
    "said",
    [
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "CUDA driver error: out of memory",
    ],
)
def test_what_cuda_says_beside_torchs_allocator_is_out_of_memory_too(said: str) -> None:
    assert is_out_of_memory(RuntimeError(said))
    assert not is_out_of_memory(ValueError(said))
