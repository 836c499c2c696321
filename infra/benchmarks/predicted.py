"""Predicted memory and time against what PEFT's authors measured: the table of `predicted.md`.

    .venv/bin/python infra/benchmarks/predicted.py --data DIR

`DIR/memory/peft_method_comparison.json` holds their results, on one L40S. Nothing is trained here,
and no GPU is needed. Two numbers are not told there and are given: the longest batch, and the mean
one for time.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from figures import table

sys.path.insert(0, str(Path(__file__).parents[2]))

from peft_jobs.host.gpus import GIB, GPUS
from peft_jobs.host.prediction import Lengths
from peft_jobs.prediction.depth import depths, full_depth
from peft_jobs.prediction.fake_base import meta_base
from peft_jobs.prediction.predict import Whole, whole
from peft_jobs.prediction.roofline import seconds_of
from peft_jobs.prediction.solo_steps import Steps, solo_steps
from tests.support.fake_bases import compared, spec_on, write_config

REPORT = Path(__file__).with_suffix(".md")
LONGEST_TOKENS, MEAN_TOKENS = 728, 280
FIRST = "lora--llama-3.2-3B-rank32"
GPU = GPUS["L40S"]
HEAD = ["configuration", "measured GiB", "predicted", "ratio", "parameters", "time", "predicted"]
MARK = "<!-- table -->"


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    path = parser.parse_args().data / "memory" / "peft_method_comparison.json"
    comparison = json.loads(path.read_text(encoding="utf-8"))
    rows = sorted(comparison["rows"], key=lambda row: row["name"] != FIRST)
    with tempfile.TemporaryDirectory() as folder:
        base = config_of(comparison, Path(folder))
        seconds: tuple[float, float] | None = None
        lines = []
        for row in rows:
            found = predicted(comparison, row, base, LONGEST_TOKENS)
            mean = predicted(comparison, row, base, MEAN_TOKENS)
            times = row["train_seconds"], seconds_of(mean.work, GPU)
            seconds = seconds or times
            lines.append(line(row, found, times[0] / seconds[0], times[1] / seconds[1]))
            print(" | ".join(lines[-1]), flush=True)
    before, _, _ = REPORT.read_text(encoding="utf-8").partition(MARK)
    made = "\n".join(table(HEAD, sorted(lines)))
    REPORT.write_text(f"{before}{MARK}\n{made}", encoding="utf-8")


def config_of(comparison: dict[str, Any], folder: Path) -> Path:
    """The comparison's base, as a configuration alone."""
    return write_config(folder, comparison["common"]["model_config"] | {"torch_dtype": "bfloat16"})


def predicted(comparison: dict[str, Any], row: dict[str, Any], base: Path, tokens: int) -> Whole:
    """What the steps of a row take."""
    common = comparison["common"]
    training = {"per_device_train_batch_size": common["batch_size"], "optim": "adamw_torch"}
    spec = spec_on(base, training=training)

    def run(depth: int | None) -> Steps:
        fake = meta_base(spec, "cuda", 2, depth)
        return solo_steps(spec, compared(row, fake), "cuda", Lengths.of(tokens))

    config = meta_base(spec, "cuda", 2, 1).model.config
    config.num_hidden_layers = common["model_config"]["num_hidden_layers"]
    return whole(run, GPU, depths(config), full_depth(config))


def line(row: dict[str, Any], found: Whole, measured: float, time: float) -> list[str]:
    """A row of the table; times are relative to those of FIRST."""
    peak = row["peak_reserved_bytes"]
    same = "exact" if found.trainable_parameters == row["trainable_parameters"] else "differ"
    return [
        row["name"].replace("--llama-3.2-3B", ""),
        f"{peak / GIB:.2f}",
        f"{found.peak_bytes / GIB:.2f}",
        f"{found.peak_bytes / peak:.3f}",
        same,
        f"{measured:.2f}",
        f"{time:.2f}",
    ]


if __name__ == "__main__":
    main()
