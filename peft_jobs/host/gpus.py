"""GPUS: what a device can do at most, by name; what people write for one.

Memory and rates are the makers' data sheets: dense, without sparsity; bfloat16 with float32 sums.
"""

import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from peft_jobs.errors import SpecError
from peft_jobs.spec.mistakes import suggest

GIB = 1 << 30
_TERA, _GIGA = 1e12, 1e9
LAUNCH_SECONDS = 5e-6
"""Of one kernel from PyTorch's eager mode: Python, dispatcher and driver. The order of magnitude of
a current server; of no machine in particular."""
CONTEXT_BYTES = 600 << 20
"""What CUDA's context and its libraries take beside PyTorch's allocator, at most."""
CORE_FLOPS, CPU_BYTES_PER_SECOND = 30 * _GIGA, 10 * _GIGA
"""What a core adds in float32, and what all of them read: orders of magnitude of a server."""
NOMINAL = 0.98
"""GiB that a card of 1 GB by its name has for programs (24 GB: 23.6; 48 GB: 47.5)."""
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(GB|GiB)", re.IGNORECASE)

Rate = Annotated[float, Field(gt=0)]


class Device(BaseModel):
    """What a step's work is divided by."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    kind: Literal["cuda", "cpu"] = "cuda"
    memory_bytes: Annotated[int, Field(gt=0)]
    """Of all of it."""
    bytes_per_second: Rate
    """Of its memory."""
    half_flops: Rate
    """Per second, in bfloat16; in float16 where it has no bfloat16."""
    float_flops: Rate
    """Per second, in float32."""
    launch_seconds: Rate = LAUNCH_SECONDS
    efficiency: Rate = 1.0
    """Of the time that its rates and launches come to, what real steps reach; learned from finished
    trials."""

    @property
    def usable_bytes(self) -> int:
        """For tensors."""
        return self.memory_bytes - (CONTEXT_BYTES if self.kind == "cuda" else 0)


def _gpu(name: str, gib: float, gb_s: float, half: float, single: float) -> Device:
    return Device(
        name=name,
        memory_bytes=int(gib * GIB),
        bytes_per_second=gb_s * _GIGA,
        half_flops=half * _TERA,
        float_flops=single * _TERA,
    )


GPUS: dict[str, Device] = {
    device.name: device
    for device in (
        # Memory as nvidia-smi tells it, which is less than the number on the box.
        _gpu("H200", 139.8, 4800, 989, 67),  # NVIDIA H200 data sheet, 2024 (SXM)
        _gpu("H100 SXM", 79.6, 3350, 989, 67),  # NVIDIA H100 data sheet, 2023
        _gpu("H100 PCIe", 79.6, 2000, 756, 51),  # the same
        _gpu("A100 80GB", 79.3, 2039, 312, 19.5),  # NVIDIA A100 data sheet, 2021 (SXM)
        _gpu("A100 40GB", 39.4, 1555, 312, 19.5),  # the same
        _gpu("L40S", 44.5, 864, 362, 91.6),  # NVIDIA L40S data sheet, 2023
        _gpu("L4", 22.5, 300, 121, 30.3),  # NVIDIA L4 data sheet, 2023
        _gpu("A10", 22.5, 600, 125, 31.2),  # NVIDIA A10 data sheet, 2021
        _gpu("A6000", 47.5, 768, 155, 38.7),  # NVIDIA RTX A6000 data sheet, 2020
        _gpu("RTX 3090", 23.7, 936, 71, 35.6),  # NVIDIA Ampere GA102 white paper, appendix A
        _gpu("RTX 4090", 23.6, 1008, 165, 82.6),  # NVIDIA Ada white paper, appendix A
        _gpu("RTX 5090", 31.4, 1792, 209, 104.8),  # NVIDIA Blackwell RTX white paper, appendix A
        _gpu("T4", 14.6, 320, 65, 8.1),  # NVIDIA T4 data sheet, 2018 (float16)
        _gpu("V100", 15.8, 900, 125, 15.7),  # NVIDIA V100 data sheet, 2017 (16 GB, SXM2; float16)
    )
}
"""By the name that people write."""


def find_gpu(text: str) -> Device:
    """The device that `text` names: one of GPUS, in any case and spacing, with its maker or
    without; or an amount of memory (`24GB`, `40GiB`), whose time is that of the GPU nearest in
    memory. Raises SpecError."""
    wanted = _plain(text)
    for name, device in GPUS.items():
        if _plain(name) == wanted:
            return device
    if match := _SIZE.fullmatch(text.strip()):
        share = 1.0 if match[2].lower() == "gib" else NOMINAL
        size = int(float(match[1]) * share * GIB)
        return _nearest(size).model_copy(update={"name": text.strip(), "memory_bytes": size})
    if several := [name for name in GPUS if _plain(name).startswith(wanted)]:
        raise SpecError(f"{text!r} is one of several GPUs: {', '.join(several)}")
    raise SpecError(f"there is no GPU {text!r} in the table{suggest(text, [*GPUS, '24GB'])}")


def find_kind(kind: str) -> Device:
    """The GPU that Ray calls `kind` (`A100`, `A100-80G`, `H100`, `L4`): of several of that name the
    one with least memory, unless the kind says how much it has. Raises SpecError."""
    words = kind.upper().removeprefix("RTX-").split("-")
    known = {gpu.name: gpu.name.removeprefix("RTX ").upper().split() for gpu in GPUS.values()}
    named = [GPUS[name] for name, parts in known.items() if parts[0] == words[0]]
    exact = [gpu for gpu in named if any(w in gpu.name.upper() for w in words[1:])]
    if not named:
        raise SpecError(f"there is no GPU {kind!r} in the table; say what it is with --gpu")
    return min(exact or named, key=lambda gpu: gpu.memory_bytes)


def device_of(name: str, memory_bytes: int) -> Device:
    """The GPU that CUDA calls `name` (`NVIDIA A100-SXM4-80GB`), with so much memory. Its rates are
    those of the one in GPUS whose words the name has, of several the nearest in memory; where there
    is none, of the nearest of all."""
    words = set(re.split(r"[\s_-]+", name.upper()))
    shared = {key: words & set(key.upper().split()) - {"RTX"} for key in GPUS}
    models = {key: key.upper().removeprefix("RTX ").split()[0] for key in GPUS}
    named = [key for key, found in shared.items() if models[key] in found]

    def far(key: str) -> tuple[int, int]:
        return -len(shared[key]), abs(GPUS[key].memory_bytes - memory_bytes)

    near = min(named, key=far) if named else _nearest(memory_bytes).name
    return GPUS[near].model_copy(update={"name": name, "memory_bytes": memory_bytes})


def cpu_of(memory_bytes: int, num_cores: int) -> Device:
    """A CPU by its cores, as good a guess as there is before trials have been timed on it."""
    return Device(
        name=f"CPU, {num_cores} cores",
        kind="cpu",
        memory_bytes=memory_bytes,
        bytes_per_second=CPU_BYTES_PER_SECOND,
        half_flops=CORE_FLOPS * num_cores,
        float_flops=CORE_FLOPS * num_cores,
    )


def _nearest(memory_bytes: int) -> Device:
    return min(GPUS.values(), key=lambda gpu: abs(gpu.memory_bytes - memory_bytes))


def _plain(name: str) -> str:
    plain = re.sub(r"[\s_-]+", "", name).upper()
    return plain.removeprefix("NVIDIA").removeprefix("GEFORCE").removeprefix("RTX")
