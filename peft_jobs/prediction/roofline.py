"""How long a device needs for kernels: each is bound by arithmetic, by memory, or by its launch.

The roofline model (Williams, Waterman and Patterson 2009, doi 10.1145/1498765.1498785), operator by
operator; launches come on top.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from peft_jobs.host.gpus import Device
from peft_jobs.prediction.meter import Operation

_HALF = ("bfloat16", "float16", "int8")


@dataclass(frozen=True)
class Work:
    """Sums over the kernels of a step."""

    launches: float
    flops: float
    bytes: float
    kernel_seconds: float
    """On a device, one kernel after the other."""


def work_of(operations: Sequence[Operation], device: Device) -> Work:
    """What they are, and how long they take on `device` at its peak rates."""
    return Work(
        len(operations),
        sum(operation.flops for operation in operations),
        sum(operation.bytes for operation in operations),
        sum(_seconds(operation, device) for operation in operations),
    )


def seconds_of(work: Work, device: Device, share: float = 1.0) -> float:
    """Of a step, with `share` of its tokens: kernels, and launches, which overlap with them less
    than a whole step would let them. On PEFT's method comparison the sum orders methods as measured
    (0.86 by ranks), the larger of both less well (0.82)."""
    seconds = work.launches * device.launch_seconds + work.kernel_seconds * share
    return seconds / device.efficiency


def _seconds(operation: Operation, device: Device) -> float:
    rate = device.half_flops if operation.dtype in _HALF else device.float_flops
    return max(operation.flops / rate, operation.bytes / device.bytes_per_second)
