"""Writes, as JSON, what is installed and which GPU there is; what is absent is null.

python infra/benchmarks/gpu_versions.py OUT.json
"""

import json
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    *("torch", "bitsandbytes", "transformers", "peft", "accelerate", "datasets", "triton"),
    *("pydantic", "pyarrow", "numpy", "pytest", "pytest-timeout", "ray", "optuna", "mlflow"),
)


def installed() -> dict[str, Any]:
    """Versions of Python, packages and driver."""
    told: dict[str, Any] = {"python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            told[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            told[package] = None
    return told | {"driver": driver()}


def gpu() -> dict[str, Any]:
    """The CUDA of torch; the GPU's name, capability and bytes of memory, or why there is none."""
    import torch

    told: dict[str, Any] = {"CUDA of torch": torch.version.cuda, "GPU": None}
    if torch.cuda.is_available():
        device = torch.cuda.get_device_properties(0)
        free, _ = torch.cuda.mem_get_info(0)
        told |= {
            "GPU": device.name,
            "GPUs": torch.cuda.device_count(),
            "capability": f"{device.major}.{device.minor}",
            "multiprocessors": device.multi_processor_count,
            "memory bytes": device.total_memory,
            "free bytes": free,
            "native bfloat16": torch.cuda.is_bf16_supported(including_emulation=False),
        }
    else:
        try:
            torch.cuda.init()
        except (RuntimeError, AssertionError) as error:
            told["why no GPU"] = str(error).strip().splitlines()[0]
    return told


def quantization() -> dict[str, Any]:
    """Whether bitsandbytes has found a library for this CUDA."""
    from bitsandbytes.cextension import lib

    return {"bitsandbytes has CUDA": getattr(lib, "compiled_with_cuda", None)}


def driver() -> str | None:
    """The version of NVIDIA's driver, and what else uses the GPUs."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = "--query-gpu=driver_version,persistence_mode,utilization.gpu,power.limit"
    try:
        done = subprocess.run(
            [program, query, "--format=csv,noheader"], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return "; ".join((done.stdout or done.stderr).strip().splitlines()) or None


if __name__ == "__main__":
    found: dict[str, Any] = {}
    for part in (installed, gpu, quantization):
        try:
            found |= part()
        except Exception as error:  # what can be known is told, whatever is broken
            found[f"{part.__name__} fails"] = f"{type(error).__name__}: {error}"
        Path(sys.argv[1]).write_text(json.dumps(found, indent=1), "utf-8")
    print(json.dumps(found, indent=1))
