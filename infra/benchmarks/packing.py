"""What packing gives: trial-steps per second, whole sweeps, and a GPU's true shapes.

    .venv/bin/python infra/benchmarks/packing.py steps [--model FOLDER --train FILE ...]
    .venv/bin/python infra/benchmarks/packing.py sweep [--trials 32] [--steps 100] [--arms B0,B5]
    .venv/bin/python infra/benchmarks/packing.py cores [--trials 16] [--steps 50]
    .venv/bin/python infra/benchmarks/packing.py gpu   [--shape 0.5B,1.5B,7B] [--seconds 540]
    .venv/bin/python infra/benchmarks/packing.py tables

Without `--model` it is the demo base on the demo data. Each measurement is added to `packing.json`
as soon as it is made, so an interrupted run loses nothing and arms may be measured in several
calls; a table shows of each cell what was measured last, `--forget` begins it anew, and
`packing.md` follows from it. Of the steps tables, `B5@8` is an arm at 8 slots only. Table `gpu`
needs a GPU (`--shape tiny` does not), no network, no files.
"""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import argparse
import importlib
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from record import Record
from tables import markdown

from peft_jobs.demo import BASE, DATA
from peft_jobs.storage.files import write_whole

HERE = Path(__file__).parent
TABLES = {"steps": "steps", "sweep": "sweep_table", "cores": "cores", "gpu": "shapes"}
"""Table -> the module that measures it."""
ARMS = {
    "steps": "B1,B4,B5,B5-auto@8",
    "gpu": "B1,B2,B2-graphed,B4@8,B5,B5-auto@16",
    "sweep": "B0,B1,B2,B3-2,B3-4,B3-8,B4,B5,B5-inline,B6,B7,B9,B9-ray",
    "cores": "solo-1x2,solo-2x1,packed-1x2,packed-2x1",
}


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    record = Record(options.out)
    try:
        if options.table != "tables":
            check(options)
            if options.forget:
                record.forget(options.table, options.arms)
            options.record = record
            # "infra/..." and plain names: no folders of this machine.
            words = sys.argv[1:] if arguments is None else arguments
            command = shlex.join(Path(word).name if "/" in word else word for word in words)
            options.command = f"infra/benchmarks/packing.py {command}"
            importlib.import_module(TABLES[options.table]).run_all(options)
    except Refused as refused:
        print(f"packing.py: {refused}", file=sys.stderr)
        return 2
    finally:
        write_whole(options.out.with_suffix(".md"), markdown(record.content))
    return 0


class Refused(Exception):
    """A table that cannot be measured here; one line for a person."""


def check(options: argparse.Namespace) -> None:
    """Raises Refused for a table that needs what is not here."""
    if options.table != "gpu" or options.shape == ["tiny"]:
        return
    import torch

    if not torch.cuda.is_available():
        raise Refused("table gpu needs a CUDA device and there is none (--shape tiny needs none)")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    tables = parser.add_subparsers(dest="table", required=True)
    for name in (*TABLES, "tables"):
        table = tables.add_parser(name)
        table.add_argument("--out", type=Path, default=HERE / "packing.json")
        if name == "tables":
            continue
        table.add_argument("--forget", action="store_true", help="begin the table anew")
        table.add_argument("--repeats", type=int, default=3)
        table.add_argument("--threads", type=int, default=os.cpu_count())
        table.add_argument("--arms", type=names, default=names(ARMS[name]))
    for name in ("steps", "sweep", "cores"):
        table = tables.choices[name]
        table.add_argument("--model", default=str(BASE), help="folder of a causal model")
        table.add_argument("--train", default=str(DATA["train"]), help="rows, a file")
        table.add_argument("--validation", default=str(DATA["validation"]), help="rows, a file")
        table.add_argument("--prompt", type=template, default="{record}\n")
        table.add_argument("--response", type=template, default="{sentence}")
    table = tables.choices["steps"]
    table.add_argument("--quantization", type=names, default=names("nf4,none"))
    for name, slots, tokens, seconds, longest in (
        ("steps", "1,4,8,16", "32,64,128,256,512,1024", 1800.0, 60.0),
        ("gpu", "8,16,1,4,32,2", "256,64,128,1024,4096", 540.0, 10.0),
    ):
        table = tables.choices[name]
        table.add_argument("--slots", type=numbers, default=numbers(slots), help="in this order")
        table.add_argument("--tokens", type=numbers, default=numbers(tokens), help="likewise")
        table.add_argument("--arm-seconds", type=float, default=1.0, help="of an arm in a repeat")
        table.add_argument("--run-seconds", type=float, default=longest, help="at most, of a run")
        table.add_argument("--seconds", type=float, default=seconds, help="of all, about")
    table = tables.choices["gpu"]
    table.add_argument("--shape", type=names, default=names("0.5B,7B,1.5B"))
    table.add_argument("--r", type=int, default=32)
    table.add_argument("--pool-steps", type=int, default=20, help="of a trial in arm B3@K")
    table.add_argument(
        "--checkpointing", type=int, default=4096, help="tokens from which activations are not kept"
    )
    for name, trials, steps in (("sweep", 32, 100), ("cores", 16, 50)):
        table = tables.choices[name]
        table.add_argument("--trials", type=int, default=trials)
        table.add_argument("--steps", type=int, default=steps)
        table.add_argument(
            "--rows", type=int, default=2, help="of a step, of up to 128 tokens each"
        )
        table.add_argument("--slots", type=int, default=8)
    table = tables.choices["sweep"]
    table.add_argument(
        "--run-trials",
        type=int,
        help="of B0, whose trials are independent processes; the makespan of all follows",
    )
    table.add_argument("--first", type=int, default=0, help="repeat, which is its seed too")
    options = parser.parse_args(arguments)
    if "model" in options:
        path = Path(options.model)
        options.model_name = "demo" if path == BASE else path.resolve().name
    return options


def names(text: str) -> list[str]:
    return text.split(",")


def template(text: str) -> str:
    return text.replace("\\n", "\n")


def numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())
