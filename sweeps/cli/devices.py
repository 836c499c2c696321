"""What this machine computes with, known without importing torch."""

import os
import subprocess

import psutil

from peft_jobs.host.gpus import Device, cpu_of, device_of

SMI_SECONDS = 30.0
"""Without persistence mode the driver wakes one GPU after the other, for about a second each."""


def gpus(timeout_seconds: float = SMI_SECONDS) -> list[str]:
    """Names of the NVIDIA GPUs that CUDA_VISIBLE_DEVICES leaves; empty without a driver."""
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    names = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return names
    chosen = [item.strip() for item in visible.split(",") if item.strip() not in ("", "-1")]
    if all(item.isdigit() for item in chosen):
        return [names[int(item)] for item in chosen if int(item) < len(names)]
    return names[: len(chosen)]  # given by UUID


def as_device() -> Device:
    """What a prediction must know of the first GPU, or of the CPU where there is none."""
    names = gpus()
    if not names:
        return cpu_of(psutil.virtual_memory().total, cores())
    return device_of(names[0], _memory_of(names[0]))


def _memory_of(name: str) -> int:
    """Bytes of the GPUs that are called so, as nvidia-smi tells them in MiB."""
    asked = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=SMI_SECONDS, check=True)
    lines = (line.rpartition(",") for line in done.stdout.splitlines())
    return next(int(mib) << 20 for found, _, mib in lines if found.strip() == name)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def device() -> str:
    """`2 x NVIDIA A100`, or `2 CPU cores, no GPU`."""
    found = gpus()
    if not found:
        return f"{cores()} CPU core{'s' if cores() > 1 else ''}, no GPU"
    kinds = {name: found.count(name) for name in found}
    return ", ".join(name if n == 1 else f"{n} x {name}" for name, n in kinds.items())
