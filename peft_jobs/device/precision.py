"""The precision and the optimizer of a trial on a device: autocast, TF32, and what it cannot do."""

import torch

from peft_jobs.errors import SpecError
from peft_jobs.spec import TrainingSpec


def autocast(device: torch.device, training: TrainingSpec) -> torch.autocast:
    """The mixed precision of a trial, in training and in every evaluation."""
    dtype = torch.float16 if training.fp16 else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=training.bf16 or training.fp16)


def use_tf32(training: TrainingSpec) -> None:
    """Set, for this process, whether a GPU rounds float32 factors; each trial sets its own."""
    torch.backends.cuda.matmul.allow_tf32 = training.tf32
    torch.backends.cudnn.allow_tf32 = training.tf32


def has_native_bf16() -> bool:
    """Whether the current GPU computes in bfloat16 itself: older ones emulate it, slowly."""
    return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def check_device(training: TrainingSpec, device: torch.device) -> None:
    """SpecError if the device lacks what the trial asks for."""
    if device.type == "cuda":
        if training.tf32 and torch.cuda.get_device_capability(device)[0] < 8:
            name = torch.cuda.get_device_name(device)
            raise SpecError(
                f"training.tf32 needs a GPU of the Ampere generation or newer, got {name}"
            )
        if training.bf16 and not has_native_bf16():
            name = torch.cuda.get_device_name(device)
            raise SpecError(
                f"training.bf16 needs a GPU of the Ampere generation or newer, got {name}, which "
                "only emulates it; training.fp16 works there"
            )
        return
    asked = [f"training.{name}" for name in ("fp16", "tf32") if getattr(training, name)]
    if training.optim.startswith("paged"):
        asked.append(f"training.optim {training.optim}")
    if asked:
        raise SpecError(
            f"{' and '.join(asked)} needs a GPU, and this is a {device.type} "
            "(bf16 and adamw_8bit work here)"
        )
