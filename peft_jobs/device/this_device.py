"""The device that this process trains on: its current GPU, or the CPU."""

import torch


def this_device() -> torch.device:
    """The current GPU, or the CPU where torch sees none."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
