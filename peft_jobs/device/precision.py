"""The precision and the optimizer of a trial on a device: autocast, TF32, and what it cannot do."""

from dataclasses import asdict, dataclass

import torch

from peft_jobs.errors import SpecError
from peft_jobs.spec import TrainingSpec


@dataclass(frozen=True)
class Precision:
    """What a trial's settings come to on a device."""

    bf16: bool
    fp16: bool
    tf32: bool

    def as_provenance(self) -> dict[str, bool]:
        """As a result says it."""
        return asdict(self)


def precision_of(training: TrainingSpec, device: torch.device) -> Precision:
    """With `auto` resolved: true where `is_ampere`. Float16, where it is asked for, comes before
    bfloat16 that is not."""
    native = device.type == "cuda" and is_ampere(device)
    bf16 = native and not training.fp16 if training.bf16 == "auto" else training.bf16
    return Precision(bf16, training.fp16, native if training.tf32 == "auto" else training.tf32)


def autocast(device: torch.device, training: TrainingSpec) -> torch.autocast:
    """The mixed precision of a trial, in training and in every evaluation."""
    precision = precision_of(training, device)
    dtype = torch.float16 if precision.fp16 else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=precision.bf16 or precision.fp16)


def use_tf32(training: TrainingSpec, device: torch.device) -> None:
    """Set, for this process, whether a GPU rounds float32 factors; each trial sets its own."""
    tf32 = precision_of(training, device).tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32


def is_ampere(gpu: torch.device) -> bool:
    """Whether a GPU is of that generation or newer, whose tensor cores take bfloat16 and TF32
    (NVIDIA, CUDA C Programming Guide, compute capabilities, 8.x)."""
    return torch.cuda.get_device_capability(gpu) >= (8, 0)


def has_native_bf16() -> bool:
    """Whether the current GPU computes in bfloat16 itself: older ones emulate it, slowly."""
    return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def check_device(training: TrainingSpec, device: torch.device) -> None:
    """SpecError if the device lacks what the trial asks for."""
    if device.type == "cuda":
        if training.tf32 is True and not is_ampere(device):
            name = torch.cuda.get_device_name(device)
            raise SpecError(
                f"training.tf32 needs a GPU of the Ampere generation or newer, got {name}"
            )
        if training.bf16 is True and not has_native_bf16():
            name = torch.cuda.get_device_name(device)
            raise SpecError(
                f"training.bf16 needs a GPU of the Ampere generation or newer, got {name}, which "
                "only emulates it; training.fp16 works there"
            )
        return
    asked = [f"training.{name}" for name in ("fp16", "tf32") if getattr(training, name) is True]
    if training.optim.startswith("paged"):
        asked.append(f"training.optim {training.optim}")
    if asked:
        raise SpecError(
            f"{' and '.join(asked)} needs a GPU, and this is a {device.type} "
            "(bf16 and adamw_8bit work here)"
        )
