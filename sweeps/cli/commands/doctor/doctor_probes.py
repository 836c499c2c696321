"""Small programs that `doctor` runs in processes of their own, so that the CLI stays light.

Each prints one line of JSON. They are text, because this package imports neither torch nor Ray
before a trial runs.
"""

import json
import subprocess
import sys
from typing import Any

TORCH = """
import json, torch
cuda = torch.cuda.is_available()
count = torch.cuda.device_count() if cuda else 0
gpus = [torch.cuda.get_device_properties(index) for index in range(count)]
print(json.dumps({
    "version": torch.__version__,
    "cuda": torch.version.cuda,
    "threads": torch.get_num_threads(),
    "bf16": cuda and torch.cuda.is_bf16_supported(including_emulation=False),
    "gpus": [{"name": gpu.name, "memory_bytes": gpu.total_memory} for gpu in gpus],
}))
"""

NF4 = """
import json, torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
device = "cuda" if torch.cuda.is_available() else "cpu"
torch.manual_seed(0)
weight = torch.randn(256, 256, device=device)
quantized, state = quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
back = dequantize_4bit(quantized, state).to(weight.dtype)
error = ((back - weight).norm() / weight.norm()).item()
print(json.dumps({"device": device, "relative_error": error}))
"""

RAY = """
import json, logging, os
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
import ray
ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False,
         logging_level=logging.ERROR)
resources = ray.cluster_resources()
ray.shutdown()
print(json.dumps({"version": ray.__version__, "gpus": resources.get("GPU", 0)}))
"""


def start(program: str) -> "subprocess.Popen[str]":
    """The program, started."""
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", program],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: "subprocess.Popen[str]", timeout_seconds: float) -> dict[str, Any] | str:
    """What the program found, or one line that says why it found nothing."""
    try:
        found, said = process.communicate(timeout=timeout_seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return f"no answer within {timeout_seconds:g} seconds"
    lines = found.strip().splitlines()
    if process.returncode == 0 and lines:
        answer: dict[str, Any] = json.loads(lines[-1])
        return answer
    said_lines = said.strip().splitlines()
    return said_lines[-1] if said_lines else f"it ended with exit code {process.returncode}"
