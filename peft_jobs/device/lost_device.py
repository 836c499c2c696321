"""Tells an error of one trial from the loss of the device, after which every trial would fail.

After an illegal access, an assert in a kernel or a fault of the hardware, CUDA answers every
further call of the process with the same error. The trial is not at fault: the process is ended,
and its trials go on in another one.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from peft_jobs.device.memory import is_out_of_memory
from peft_jobs.errors import DeviceLost, OutOfMemory
from peft_jobs.host.result import TrialResult


def result_of(error: Exception, traceback: str, **seen: Any) -> TrialResult:
    """`TrialResult.from_error` at a trial's edge; raises DeviceLost for what is not its error."""
    raise_if_lost(error)
    if is_out_of_memory(error):
        error = OutOfMemory(str(error))
    return TrialResult.from_error(error, traceback, **seen)


@contextmanager
def raising_device_lost() -> Iterator[None]:
    """Whatever a lost device makes the block raise, it raises DeviceLost."""
    try:
        yield
    except Exception as error:
        raise_if_lost(error)
        raise


def raise_if_lost(error: Exception) -> None:
    """Raise DeviceLost if the device is lost, as `error` says."""
    if isinstance(error, DeviceLost):
        raise error
    if isinstance(error, torch.AcceleratorError) and not is_out_of_memory(error) and not _answers():
        text = str(error).partition("\n")[0]
        raise DeviceLost(f"the device takes no more work from this process: {text}") from error


def _answers() -> bool:
    """Whether the GPUs of this process still do what they are told: some errors are of one call.

    A device of another kind is not asked.
    """
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return False
    try:
        for device in range(torch.cuda.device_count()):
            if torch.cuda.memory_reserved(device):
                torch.cuda.synchronize(device)
    except torch.AcceleratorError:
        return False
    return True
