"""Where the wall time of a sweep goes: every thread of every process, sampled.

    .venv/bin/python infra/benchmarks/where.py [inline] [ray] [--model FOLDER --train FILE ...]

Runs a packed sweep that prunes, inline and on Ray, with a thread in each process that looks 100
times a second at what all other threads are doing, and names it by the innermost of the functions
in `stacks.py`. Ray's processes get that thread through a `sitecustomize` module. Writes `where.md`
beside this file: seconds by what was done, for the driver's thread, the one that trains, and the
one that delivers to the tracking server.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from packing import parse
from sweep_table import copied

HERE = Path(__file__).parent
ARMS = {"inline": "B9", "ray": "B9-ray"}
LEAST = 0.05
"""Seconds below which a line is not told."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("backends", nargs="*", default=["inline", "ray"])
    parser.add_argument("--out", type=Path, default=HERE / "where.md")
    own, rest = parser.parse_known_args(arguments)
    options = parse(["sweep", *rest])
    lines = ["# Where the time of a sweep goes", ""]
    lines += [f"{options.model_name}, {options.trials} trials of {options.steps} steps of at most"]
    lines += [f"{options.rows * 128} tokens, {options.slots} slots, NF4, pruned at a quarter,"]
    lines += ["tracked in a local MLflow database; `infra/benchmarks/where.py`, "]
    lines += [f"{os.cpu_count()} cores, {time.strftime('%Y-%m-%d %H:%M')}, load "]
    lines += [f"{os.getloadavg()[0]:.1f}.", ""]
    for backend in own.backends:
        seconds, found = sampled(options, backend)
        lines += [f"## {backend}: {seconds:.1f} s", ""]
        for thread, parts in found.items():
            lines += [f"{thread} ({sum(parts.values()):.1f} s seen):", ""]
            lines += [
                f"* {spent:.2f} s {name}"
                for name, spent in sorted(parts.items(), key=lambda part: -part[1])
                if spent >= LEAST
            ]
            lines.append("")
    own.out.write_text("\n".join(lines))
    print("\n".join(lines))


def sampled(options: argparse.Namespace, backend: str) -> tuple[float, dict[str, dict[str, float]]]:
    """Wall seconds of a sweep in a process of its own, and seconds by thread and what it did."""
    with tempfile.TemporaryDirectory(prefix="where-") as name:
        folder = Path(name)
        config = copied(options, folder) | {"seed": 0, "tracking": {}, "spawned": time.time()}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "site").mkdir()
        (folder / "site" / "sitecustomize.py").write_text("import stacks\nstacks.watch()\n")
        (folder / "seen").mkdir()
        path = os.pathsep.join(
            [str(folder / "site"), str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
        )
        environment = {**os.environ, "PYTHONPATH": path, "STACKS_FOLDER": str(folder / "seen")}
        began = time.time()
        subprocess.run(
            [sys.executable, str(HERE / "sweep_arms.py"), ARMS[backend], str(folder)],
            check=True,
            env=environment,
            stdout=subprocess.DEVNULL,
        )
        seconds = time.time() - began
        return seconds, by_thread(folder / "seen")


def by_thread(seen: Path) -> dict[str, dict[str, float]]:
    """What all processes have written, for the threads that matter."""
    found: dict[str, dict[str, float]] = {}
    for path in seen.glob("*.json"):
        for thread, parts in json.loads(path.read_text()).items():
            into = found.setdefault(thread, {})
            for part, spent in parts.items():
                into[part] = into.get(part, 0.0) + spent
    return found


if __name__ == "__main__":
    main()
