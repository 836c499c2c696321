"""`doctor`: is this machine ready for a sweep? One line each, with what to do where it is not."""

import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import psutil
from rich.table import Table

from sweeps.cli.commands.doctor.doctor_packages import packages
from sweeps.cli.commands.doctor.doctor_probes import NF4, RAY, TORCH, finish, start
from sweeps.cli.exit_codes import ExitCode
from sweeps.cli.screen import err, out, print_json, size

PROBE_SECONDS = 120.0
NF4_ERROR = 0.2
"""Relative error of a weight that went through NF4 and back; 0.09 for normal weights."""
_GIB = 2**30
_MARKS = {"ok": "green", "warning": "yellow", "problem": "red"}


@dataclass(frozen=True)
class Check:
    """One line of the report."""

    name: str
    status: Literal["ok", "warning", "problem"]
    found: str
    advice: str = ""


def doctor(storage: Path, json: bool) -> ExitCode:
    """Print the report; FAILED if there is a problem."""
    with err.status("Looking at packages, torch, bitsandbytes and Ray ..."):
        checks = list(examine(storage))
    if json:
        print_json([asdict(check) for check in checks])
    else:
        out.print(_table(checks))
        out.print(_verdict(checks))
    problem = any(check.status == "problem" for check in checks)
    return ExitCode.FAILED if problem else ExitCode.DONE


def examine(storage: Path) -> Iterator[Check]:
    """Every check, in the order of the report."""
    probes = {"torch": start(TORCH), "nf4": start(NF4), "ray": start(RAY)}
    yield Check("Python", "ok", f"{platform.python_version()} on {platform.platform(terse=True)}")
    for name, status, found, advice in packages():
        yield Check(name, status, found, advice)
    torch = finish(probes["torch"], PROBE_SECONDS)
    yield from _torch(torch)
    yield _nf4(finish(probes["nf4"], PROBE_SECONDS))
    yield _ray(finish(probes["ray"], PROBE_SECONDS), torch)
    yield _memory()
    yield from _storage(storage)
    yield from _hub()


def _torch(found: dict[str, Any] | str) -> Iterator[Check]:
    if isinstance(found, str):
        yield Check("torch", "problem", found, "install torch again; `import torch` fails")
        return
    build = f"built for CUDA {found['cuda']}" if found["cuda"] else "built for CPUs"
    yield Check("torch", "ok", f"{found['version']}, {build}, {found['threads']} threads")
    for index, gpu in enumerate(found["gpus"]):
        half = "bf16" if found["bf16"] else "no bf16: leave training.bf16 off"
        yield Check(f"GPU {index}", "ok", f"{gpu['name']}, {size(gpu['memory_bytes'])}, {half}")
    if not found["gpus"]:
        advice = "fine for small bases; for larger ones, run where there is an NVIDIA GPU"
        if shutil.which("nvidia-smi"):
            advice = "the driver is there: install a torch that is built for its CUDA version"
        yield Check("GPU", "warning", "none that torch can use", advice)


def _nf4(found: dict[str, Any] | str) -> Check:
    name = "NF4"
    if isinstance(found, str):
        advice = "bitsandbytes does not work here; use `quantization: none`, or install it again"
        return Check(name, "problem", found, advice)
    text = f"on {found['device']}, relative error {found['relative_error']:.3f}"
    if found["relative_error"] > NF4_ERROR:
        return Check(name, "problem", text, f"above {NF4_ERROR}: install bitsandbytes again")
    return Check(name, "ok", text)


def _ray(found: dict[str, Any] | str, torch: dict[str, Any] | str) -> Check:
    if isinstance(found, str):
        return Check("Ray", "problem", found, "Ray does not start; `run --inline` needs none")
    text = f"{found['version']} starts, and sees {found['gpus']:g} GPUs"
    if isinstance(torch, dict) and found["gpus"] < len(torch["gpus"]):
        return Check("Ray", "warning", text, "fewer than torch; look at CUDA_VISIBLE_DEVICES")
    return Check("Ray", "ok", text)


def _memory() -> Check:
    memory = psutil.virtual_memory()
    text = f"{size(memory.available)} of {size(memory.total)} free"
    if memory.available < 4 * _GIB:
        return Check("memory", "warning", text, "close programs, or choose a small base")
    return Check("memory", "ok", text)


def _storage(storage: Path) -> Iterator[Check]:
    wanted = storage.absolute()
    folder = next(path for path in (wanted, *wanted.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=folder):
            yield Check("storage", "ok", f"{wanted} can be written")
    except OSError as error:
        advice = "give another folder with --storage, and as `storage:` in the sweep file"
        yield Check("storage", "problem", f"{folder}: {error.strerror}", advice)
    yield _disk("storage disk", folder)


def _disk(name: str, folder: Path) -> Check:
    usage = shutil.disk_usage(folder)
    text = f"{size(usage.free)} of {size(usage.total)} free"
    if usage.free < _GIB:
        return Check(name, "problem", text, "make room: adapters and databases need a gigabyte")
    if usage.free < 10 * _GIB:
        return Check(name, "warning", text, "enough for small bases; a sweep keeps every adapter")
    return Check(name, "ok", text)


def _hub() -> Iterator[Check]:
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    cached = len(list((home / "hub").glob("models--*"))) if (home / "hub").is_dir() else 0
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    token = "HF_TOKEN is set" if os.environ.get("HF_TOKEN") else "no HF_TOKEN"
    text = f"{home}, {cached} models cached, {token}"
    if offline and cached == 0:
        advice = "HF_HUB_OFFLINE is set and nothing is cached: only local bases and `demo` load"
        yield Check("Hub cache", "warning", f"{text}, offline", advice)
    else:
        yield Check("Hub cache", "ok", f"{text}, offline" if offline else text)


def _table(checks: list[Check]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for check in checks:
        table.add_row(f"[{_MARKS[check.status]}]{check.status}[/]", check.name, check.found)
        if check.advice:
            table.add_row("", "", f"[{_MARKS[check.status]}]{check.advice}[/]")
    return table


def _verdict(checks: list[Check]) -> str:
    problems = [check.name for check in checks if check.status == "problem"]
    if problems:
        return f"\n[red]Not ready: {', '.join(problems)}.[/]"
    return "\n[green]Ready.[/] `peft-sweep init` writes a sweep file to start from."
