"""The device that this process trains on: its current GPU, or the CPU."""

import os
import platform
from pathlib import Path

import psutil
import torch

from peft_jobs.errors import SpecError
from peft_jobs.host.gpus import Device, cpu_of, device_of

BUILDS = "https://pytorch.org/get-started/locally"


def this_device() -> torch.device:
    """The current GPU, or the CPU on a machine without one, or if CUDA_VISIBLE_DEVICES is empty.

    Raises SpecError if there is a GPU that torch cannot use.
    """
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if gpu_is_promised():
        raise SpecError(_unusable())
    return torch.device("cpu")


def gpu_is_promised() -> bool:
    """Whether CUDA_VISIBLE_DEVICES names a GPU; where it is not set, whether NVIDIA's driver, which
    torch may be too new for, shows one to this machine or container."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return any(Path("/dev").glob("nvidia[0-9]*"))
    return visible.strip() not in ("", "-1")


def _unusable() -> str:
    """In one line, as Ray hands on no more."""
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
        reason = "it does not say why"
    except Exception as error:  # torch raises AssertionError, RuntimeError and its own
        reason = " ".join(str(error).split())
    if torch.version.cuda is None:
        remedy = f"install a build of torch with CUDA ({BUILDS})"
    else:
        remedy = (
            f"install an NVIDIA driver for CUDA {torch.version.cuda}, or a build of torch for the "
            f"driver that is there ({BUILDS})"
        )
    return (
        f"torch {torch.__version__} cannot use the GPU of {platform.node()}: {reason}; {remedy}, "
        "or set CUDA_VISIBLE_DEVICES to nothing to train on the CPU"
    )


def device_name(device: torch.device) -> str:
    """As records name it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def as_device(device: torch.device) -> Device:
    """What a prediction must know of a device of this process."""
    if device.type != "cpu":
        found = torch.get_device_module(device).get_device_properties(device)
        return device_of(found.name, found.total_memory)
    return cpu_of(psutil.virtual_memory().total, os.cpu_count() or 1)
