"""Everything that has to be known of a GPU, in parts that cannot end each other.

    bash infra/gpu_check.sh [--out FOLDER] [--dry-run]

Each part is a process of its own with a limit; `gpu_check.json` and `gpu_check.md` in FOLDER are
written anew after each of them, and what failed, ran out of time or was left out stands there. It
is the caller that needs nothing but the standard library: a part that cannot import something says
so, and the others run. Exit code 0 if all parts ran and what must hold holds, 1 if not, 2 without
a GPU.

With `--dry-run` the same parts run with tiny shapes and on the CPU.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_report import holds, markdown

ROOT = Path(__file__).resolve().parents[2]
HERE = "infra/benchmarks"
SECONDS = 525.0
"""Of everything; the last part gets what is left."""
DRY_FACTOR = 10.0
"""Longer than on a GPU's machine: a dry run may share two cores with others, and is to be whole."""
LEAST_SECONDS = 25.0
"""A part that has less is not begun: imports and a base take as long."""
STOPPING_SECONDS = 10.0
"""After SIGINT, in which a part writes what it has."""
OWN_SHARE = 0.8
"""Of its limit, what a part is told to take: a base, and its last run, take their time."""
SWEEP_PACKAGES = ("ray", "optuna", "mlflow")


@dataclass(frozen=True)
class Part:
    """A command with a limit; `{seconds}` in a word of it is what it is told to take."""

    name: str
    command: Sequence[str]
    seconds: float


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/gpu_check"))
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on the CPU")
    options = parser.parse_args(arguments)
    options.out = options.out.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    for old in ("versions.json", "tests.xml", "probe.json", "packing.json"):
        (options.out / old).unlink(missing_ok=True)
    factor = DRY_FACTOR if options.dry_run else 1.0
    deadline = time.monotonic() + factor * SECONDS
    content: dict[str, Any] = {"dry_run": options.dry_run, "parts": [], "skipped": []}
    for part in parts(options.out, options.dry_run, content["skipped"]):
        content["parts"].append(told := ran(part, factor, deadline, options))
        print(f"== {part.name}: {told['outcome']}, {told['seconds']:.0f} s", flush=True)
        gather(content, options.out)
        versions = content.get("versions", {})
        if not options.dry_run and versions.get("GPU") is None:
            why = versions.get("why no GPU") or versions.get("gpu fails") or "torch sees none"
            print(f"gpu_check: there is no GPU: {why} (--dry-run needs none)", file=sys.stderr)
            return 2
    print(options.out / "gpu_check.md")
    return 0 if holds(content) else 1


def parts(out: Path, dry_run: bool, skipped: list[str]) -> list[Part]:
    """What is run, in this order; what is left out is added to `skipped`."""
    python = sys.executable
    probe = [python, f"{HERE}/gpu_probe.py", str(out / "probe.json"), "--seconds={seconds}"]
    probe += ["--dry-run", "--threads", "1"] if dry_run else []
    versions = [python, f"{HERE}/gpu_versions.py", str(out / "versions.json")]
    found = [Part("versions", versions, 60)]
    if importlib.util.find_spec("pytest") is None:
        skipped.append("the tests marked gpu: there is no pytest")
    else:
        found.append(Part("tests", tests(out, skipped), 130))
    found.append(Part("probe", probe, 125))

    def table(name: str, seconds: float, **words: str) -> Part:
        given = {"repeats": "3", "run_seconds": "20", **words}
        if dry_run:
            given |= {"shape": "tiny", "tokens": "32", "slots": "2", "repeats": "1"}
            given |= {"arm_seconds": "0.05", "threads": "1"}
        command = [python, f"{HERE}/packing.py", "gpu", "--out", str(out / "packing.json")]
        command += [f"--{key.replace('_', '-')}={value}" for key, value in given.items()]
        return Part(name, [*command, "--seconds={seconds}"], seconds)

    goals = {"arms": "B1,B2,B2-graphed,B5"}
    large = table("7B", 140, shape="7B", tokens="128", slots="8,1", **goals)
    if dry_run:
        return [*found, large]
    own = {"arms": "B1,B5-auto@16", "repeats": "1", "run_seconds": "45"}
    # None of the goals' cells: a table shows of a cell what was measured last.
    rest = {"arms": "B1,B2,B2-graphed,B5", "shape": "0.5B,1.5B,7B", "tokens": "64,512,1024"}
    return [
        *found,
        large,
        table("0.5B", 85, shape="0.5B", tokens="256", slots="16", **goals),
        table("own K", 90, shape="0.5B,7B", tokens="256,1024", slots="16", **own),
        table("rest", 200, slots="8,16,4", **rest),
    ]


def tests(out: Path, skipped: list[str]) -> list[str]:
    """pytest on the files that have tests for a GPU, without plugins that may be absent."""
    files = [
        path.relative_to(ROOT)
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        if "mark.gpu" in (text := path.read_text("utf-8")) or "tests.support.devices" in text
    ]
    absent = [name for name in SWEEP_PACKAGES if not importable(name)]
    if absent:
        whole = [str(path) for path in files if path.is_relative_to("tests/sweeps")]
        skipped += [f"{name}: there is no {', '.join(absent)}" for name in whole]
        files = [path for path in files if not path.is_relative_to("tests/sweeps")]
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-rs", "-p", "no:cacheprovider"]
    command += ["--continue-on-collection-errors", f"--junitxml={out / 'tests.xml'}"]
    if importlib.util.find_spec("pytest_timeout") is not None:
        command.append("--timeout=60")
    return command + [str(path) for path in files]


def importable(name: str) -> bool:
    """Whether a package is there and can be imported, found out beside this process."""
    command = [sys.executable, "-c", f"import {name}"]
    return subprocess.run(command, capture_output=True, timeout=120).returncode == 0


def ran(part: Part, factor: float, deadline: float, options: argparse.Namespace) -> dict[str, Any]:
    """Run a part; its outcome and seconds. What it prints is in a file, whose end is shown."""
    log = options.out / f"{part.name.replace(' ', '-')}.txt"
    limit = min(factor * part.seconds, deadline - time.monotonic())
    told = {"name": part.name, "log": log.name, "seconds": 0.0}
    if limit < LEAST_SECONDS:
        return told | {"outcome": "skipped: no time was left"}
    print(f"== {part.name}, at most {limit:.0f} s", flush=True)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment |= {"PYTHONUNBUFFERED": "1"}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"} if options.dry_run else {}
    taking = f"{OWN_SHARE * limit:.0f}"
    began = time.monotonic()
    with log.open("w") as output:
        process = subprocess.Popen(
            [word.replace("{seconds}", taking) for word in part.command],
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        outcome = waited(process, limit)
    lines = log.read_text("utf-8", errors="replace").splitlines()
    print("\n".join(line[:400] for line in lines[-25:]), flush=True)
    return told | {"outcome": outcome, "seconds": time.monotonic() - began}


def waited(process: "subprocess.Popen[bytes]", seconds: float) -> str:
    """How the process ended, which has so long; all that it started is ended with it."""
    try:
        code = process.wait(seconds)
        return "ok" if code == 0 else f"exit code {code}"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOPPING_SECONDS)
        return f"stopped after {seconds:.0f} s"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def gather(content: dict[str, Any], out: Path) -> None:
    """Put what the parts have written so far into the two files."""
    for name in ("versions", "probe", "packing"):
        with contextlib.suppress(OSError, ValueError):
            content[name] = json.loads((out / f"{name}.json").read_text("utf-8"))
    with contextlib.suppress(OSError):
        content["tests_xml"] = (out / "tests.xml").read_text("utf-8")
    kept = {name: value for name, value in content.items() if name != "tests_xml"}
    (out / "gpu_check.json").write_text(json.dumps(kept, indent=1), "utf-8")
    try:
        page = markdown(content)
    except Exception:  # the figures are worth more than their page
        page = traceback.format_exc()
    (out / "gpu_check.md").write_text(page, "utf-8")


if __name__ == "__main__":
    sys.exit(main())
