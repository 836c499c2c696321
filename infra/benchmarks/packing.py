"""What packing gives: trial-steps per second, whole sweeps, and a GPU's true shapes.

    .venv/bin/python infra/benchmarks/packing.py steps [--model FOLDER --train FILE ...]
    .venv/bin/python infra/benchmarks/packing.py sweep [--trials 32] [--steps 100] [--arms B0,B5]
    .venv/bin/python infra/benchmarks/packing.py gpu   [--shape 0.5B,1.5B,7B] [--seconds 540]
    .venv/bin/python infra/benchmarks/packing.py tables

Without `--model` it is the demo base on the demo data. Each measurement is added to `packing.json`
as soon as it is made, so an interrupted run loses nothing, arms may be measured in several calls,
and `--forget` begins a table anew; `packing.md` follows from it. Table `gpu` needs a GPU (`--shape
tiny` does not), no network, no files.
"""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import argparse
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from record import Record
from tables import markdown

from peft_jobs.demo import BASE, DATA
from peft_jobs.files import write_whole

HERE = Path(__file__).parent
ROWS_BY_LENGTH = {
    32: (1, 32),
    64: (1, 64),
    128: (2, 64),
    256: (4, 64),
    512: (4, 128),
    1024: (8, 128),
}
"""Tokens of a trial-step -> its rows and their length on a CPU."""
ARMS = {
    "steps": "B1,B4,B5,B5-auto",
    "gpu": "B1,B2,B4,B5,B5-auto",
    "sweep": "B0,B1,B3,B5,B6,B7,B9,B9-ray",
}


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    record = Record(options.out)
    try:
        if options.table != "tables":
            if options.forget:
                record.forget(options.table)
            options.record = record
            # "infra/..." and plain names: no folders of this machine.
            words = sys.argv[1:] if arguments is None else arguments
            command = shlex.join(Path(word).name if "/" in word else word for word in words)
            options.command = f"infra/benchmarks/packing.py {command}"
            {"steps": steps, "sweep": sweep, "gpu": gpu}[options.table](options)
    except Refused as refused:
        print(f"packing.py: {refused}", file=sys.stderr)
        return 2
    finally:
        write_whole(options.out.with_suffix(".md"), markdown(record.content))
    return 0


class Refused(Exception):
    """A table that cannot be measured here; one line for a person."""


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    tables = parser.add_subparsers(dest="table", required=True)
    for name in ("steps", "sweep", "gpu", "tables"):
        table = tables.add_parser(name)
        table.add_argument("--out", type=Path, default=HERE / "packing.json")
        if name == "tables":
            continue
        table.add_argument("--forget", action="store_true", help="begin the table anew")
        table.add_argument("--repeats", type=int, default=3)
        table.add_argument("--threads", type=int, default=os.cpu_count())
        table.add_argument("--arms", type=names, default=names(ARMS[name]))
    for name in ("steps", "sweep"):
        table = tables.choices[name]
        table.add_argument("--model", default=str(BASE), help="folder of a causal model")
        table.add_argument("--train", default=str(DATA["train"]), help="rows, a file")
        table.add_argument("--validation", default=str(DATA["validation"]), help="rows, a file")
        table.add_argument("--prompt", type=template, default="{record}\n")
        table.add_argument("--response", type=template, default="{sentence}")
    table = tables.choices["steps"]
    table.add_argument("--quantization", type=names, default=names("nf4,none"))
    for name, slots, tokens in (
        ("steps", "1,4,8,16", "32,64,128,256,512,1024"),
        ("gpu", "1,2,4,8,16,32", "64,256,1024,4096"),
    ):
        table = tables.choices[name]
        table.add_argument("--slots", type=numbers, default=numbers(slots))
        table.add_argument("--tokens", type=numbers, default=numbers(tokens))
        table.add_argument("--arm-seconds", type=float, default=1.0, help="of an arm in a repeat")
    table = tables.choices["gpu"]
    table.add_argument("--shape", type=names, default=names("0.5B,1.5B,7B"))
    table.add_argument("--r", type=int, default=32)
    table.add_argument("--seconds", type=float, default=540, help="after which no cell begins")
    table = tables.choices["sweep"]
    table.add_argument("--trials", type=int, default=32)
    table.add_argument("--steps", type=int, default=100)
    table.add_argument("--rows", type=int, default=2, help="of a step, of up to 128 tokens each")
    table.add_argument("--slots", type=int, default=8)
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


def steps(options: argparse.Namespace) -> None:
    """Solo and packed on the same resident base: tokens by quantization by slots."""
    from arms import Arm, auto, looped, packed, solo
    from cells import Cells, measure

    from peft_jobs.solo import SoloEngine
    from peft_jobs.spec import TrialSpec

    kinds = {"B1": solo, "B4": looped, "B5": packed, "B5-auto": auto}
    with tempfile.TemporaryDirectory() as cache:
        engine = SoloEngine(cache, threads=options.threads)
        run = options.record.begin("steps", options.command, threads=options.threads)
        for scheme in options.quantization:
            for tokens in options.tokens:
                rows, length = ROWS_BY_LENGTH[tokens]
                spec = trial(options, scheme, rows, length)
                arms = [Arm(name, kinds[name], engine) for name in options.arms]
                base, _ = engine.check(TrialSpec.model_validate(spec))
                setting = {
                    "model": options.model_name,
                    "parameters": base.model.num_parameters(),
                    "quantization": scheme,
                    "tokens": tokens,
                }
                cells = Cells(
                    TrialSpec.model_validate(spec),
                    options.slots,
                    options.repeats,
                    options.arm_seconds,
                    warm_steps=8,
                    compared=max(options.slots),
                )
                for measured in measure(cells, arms):
                    options.record.add(run, setting, measured)
                    print(setting, measured, flush=True)


def trial(options: argparse.Namespace, scheme: str, rows: int, length: int) -> dict[str, Any]:
    """A trial on whole texts cut at `length`, so that a step has `rows * length` tokens or less."""
    return {
        "model": options.model,
        "quantization": scheme,
        "adapter": {"r": 8, "target_modules": "all-linear"},
        "task": {"type": "causal_lm", "response": options.prompt + options.response},
        "data": {
            "train": options.train,
            "validation": options.validation,
            "validation_subset": 4,
            "subset": 256,
            "max_length": length,
        },
        "training": {"per_device_train_batch_size": rows, "learning_rate": 1e-3},
    }


def sweep(options: argparse.Namespace) -> None:
    """The makespan of whole sweeps."""
    from sweep_table import sweep as run_all

    run_all(options)


def gpu(options: argparse.Namespace) -> None:
    """Random weights of true shapes, made on the device."""
    import torch

    if not torch.cuda.is_available() and options.shape != ["tiny"]:
        raise Refused("table gpu needs a CUDA device and there is none (--shape tiny needs none)")
    from shapes import run_all

    run_all(options)


if __name__ == "__main__":
    sys.exit(main())
