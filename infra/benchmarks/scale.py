"""What a sweep costs its driver: simulated trials by the thousand, inline and on Ray.

    .venv/bin/python infra/benchmarks/scale.py inline  [--trials 1000,10000] [--slots 64,512]
    .venv/bin/python infra/benchmarks/scale.py ray     [--trials 1000] [--slots 8]
    .venv/bin/python infra/benchmarks/scale.py proxies [--proxies 8,32]
    .venv/bin/python infra/benchmarks/scale.py storage [--trials 1000,10000]
    .venv/bin/python infra/benchmarks/scale.py tables

Every cell is a whole sweep in a process of its own, with its own database; the simulated trials
cost next to nothing, so what is left is the orchestrator. Each measurement is added to `scale.json`
as soon as it is made; `--forget` begins a table anew; `scale.md` follows from it.
"""

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from record import Record
from scale_cells import proxies_cell, storage_cell, sweep_cell
from scale_tables import markdown

from peft_jobs.storage.files import write_whole

HERE = Path(__file__).parent
CELLS = {
    "inline": sweep_cell,
    "ray": sweep_cell,
    "proxies": proxies_cell,
    "storage": storage_cell,
}


def main(arguments: Sequence[str] | None = None) -> int:
    words = sys.argv[1:] if arguments is None else arguments
    if words[:1] == ["cell"]:  # the process of one cell
        setting = json.loads(words[1])
        with tempfile.TemporaryDirectory() as storage:
            print(json.dumps(CELLS[setting.pop("table")](storage=storage, **setting)))
        return 0
    options = parse(words)
    record = Record(options.out)
    try:
        if options.table != "tables":
            if options.forget:
                record.forget(options.table)
            command = shlex.join(Path(word).name if "/" in word else word for word in words)
            run = record.begin(options.table, f"infra/benchmarks/scale.py {command}")
            for setting in settings(options):
                measured = in_a_process({"table": options.table, **setting})
                record.add(run, setting, measured)
                print(setting, measured, flush=True)
    finally:
        write_whole(options.out.with_suffix(".md"), markdown(record.content))
    return 0


def parse(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    tables = parser.add_subparsers(dest="table", required=True)
    for name in (*CELLS, "tables"):
        table = tables.add_parser(name)
        table.add_argument("--out", type=Path, default=HERE / "scale.json")
        if name != "tables":
            table.add_argument("--forget", action="store_true", help="begin the table anew")
            table.add_argument("--repeats", type=int, default=1)
    for name, trials, slots in (("inline", "1000,10000", "64,512"), ("ray", "1000", "8")):
        table = tables.choices[name]
        table.add_argument("--trials", type=numbers, default=numbers(trials))
        table.add_argument("--slots", type=numbers, default=numbers(slots))
        samplers = ["random", "tpe"]
        table.add_argument("--samplers", type=lambda text: text.split(","), default=samplers)
    tables.choices["storage"].add_argument("--trials", type=numbers, default=numbers("1000,10000"))
    table = tables.choices["proxies"]
    table.add_argument("--proxies", type=numbers, default=numbers("8,32"))
    table.add_argument("--seconds", type=float, default=3.0, help="of a trial, per proxy")
    return parser.parse_args(words)


def numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def settings(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The cells of a table, repeats outermost."""
    cells: list[dict[str, Any]]
    if options.table == "proxies":
        cells = [{"proxies": n, "seconds": options.seconds * n} for n in options.proxies]
    elif options.table == "storage":
        cells = [{"trials": trials} for trials in options.trials]
    else:
        cells = [
            {"backend": options.table, "trials": trials, "slots": slots, "sampler": sampler}
            for trials in options.trials
            for slots in options.slots
            for sampler in options.samplers
        ]
    return cells * options.repeats


def in_a_process(setting: Mapping[str, Any]) -> dict[str, Any]:
    """One cell, measured where nothing else has run."""
    command = [sys.executable, __file__, "cell", json.dumps(setting)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


if __name__ == "__main__":
    sys.exit(main())
