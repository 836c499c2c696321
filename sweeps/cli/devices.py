"""What this machine, or a cluster, computes with, known without importing torch."""

import os
import subprocess

import psutil

from peft_jobs import SpecError
from peft_jobs.host.gpus import Device, cpu_of, device_of, find_gpu, find_kind
from peft_jobs.references import load

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


def planned_devices(
    kind: str | None, gpu: str | None, num_gpus: int | None, address: str | None
) -> tuple[Device, int, list[str]]:
    """What a sweep will run on, how many of it, and what must be said of that: GPUs of the `kind`
    that it asks for in the cluster at `address`, if there is one, or else this machine's; `gpu` and
    `num_gpus` are a person's words. Raises SpecError; Unavailable without such a cluster."""
    if address is None:
        return find_gpu(gpu) if gpu is not None else as_device(), num_gpus or 1, []
    kinds = load("sweeps.backends.ray.cluster_gpus:cluster_gpus")(address)
    found = {name: count for name, count in kinds.items() if kind in (None, name)}
    if not found:
        of_kind = "" if kind is None else f" of kind {kind}"
        raise SpecError(f"the cluster at {address} has no GPUs{of_kind}")
    number = num_gpus or sum(found.values())
    if gpu is not None:
        return find_gpu(gpu), number, []
    if "" in found:
        raise SpecError(f"Ray does not know the GPUs at {address}: say what they are with --gpu")
    devices = [find_kind(name) for name in found]
    least = min(devices, key=lambda device: device.memory_bytes)
    if len(devices) == 1:
        return least, number, []
    told = ", ".join(f"{count} x {name}" for name, count in sorted(found.items()))
    return least, number, [f"The cluster has {told}: this plan takes all for {least.name}."]


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
