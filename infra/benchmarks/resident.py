"""Predicted against measured growth of a process's resident memory: the table of `resident.md`.

    .venv/bin/python infra/benchmarks/resident.py --models DIR

Every method trains a few steps of full rows on a CPU, alone, and eight slots of it together where
it packs, on the demo's base and on `DIR/stories260k`. The base is resident before; what is told is
what a trial adds at most. A trial before the first row warms up what a process keeps.

glibc's heap keeps holes that depend on what a process did before, which no trial is to blame for:
with `MALLOC_MMAP_THRESHOLD_=262144` in the environment larger blocks go back when they are freed.
"""

import argparse
import json
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
from figures import table

sys.path.insert(0, str(Path(__file__).parents[2]))

from peft_jobs.device.memory import release
from peft_jobs.engines.packed.eligibility import unpackable
from peft_jobs.engines.packed.packed_engine import PackedEngine
from peft_jobs.engines.packed.slot_count import OF_BASE
from peft_jobs.errors import SpecError
from peft_jobs.host.gpus import cpu_of
from peft_jobs.host.job import Inbox, Job
from peft_jobs.host.prediction import Lengths
from peft_jobs.phases import Phases
from peft_jobs.prediction.predict import predict
from peft_jobs.spec import TrialSpec
from peft_jobs.spec.adapters import ADAPTERS
from tests.support.method_examples import EXAMPLES

REPORT = Path(__file__).with_suffix(".md")
MARK = "<!-- table -->"
TOKENS, ROWS, STEPS = 256, 16, 3
LENGTHS = Lengths(tokens=TOKENS, supervised=TOKENS, mean_tokens=TOKENS)
SLOTS = 8
SHARE, MEGABYTES = 0.1, 30
"""How far a prediction may be off: by one or the other."""
HEAD = ["base", "method", "slots", "measured MB", "predicted MB", "difference", "trained"]
FIELDS = {example.method: example.fields for example in reversed(EXAMPLES)}
"""Of an adapter, beside its method: not all defaults go with small bases."""


class Line:
    """An inbox that holds all jobs from the start."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.jobs = list(jobs)

    def take(self, block: bool = True) -> Job | None:
        return self.jobs.pop(0) if self.jobs else None


class Answered(Job):
    """A job whose reports nobody reads."""

    def report(self, progress: Any) -> None:
        """It goes on."""


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--only", nargs="+", default=list(ADAPTERS))
    options = parser.parse_args()
    lines: list[list[str]] = []
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.jsonl"
        text = " ".join(f"{n} little stars shine" for n in range(TOKENS))
        rows.write_text(f"{json.dumps({'text': text})}\n" * 64, encoding="utf-8")
        for base in ("demo", str(options.models / "stories260k")):
            engine = PackedEngine(folder, num_slots=SLOTS, threads=1)
            row(engine, trial(base, "lora", rows), 1, Path(folder))
            for method in options.only:
                spec = trial(base, method, rows)
                for slots in (1, SLOTS):
                    try:
                        found = row(engine, spec, slots, Path(folder))
                    except SpecError as error:
                        print(f"{base}, {method}: {error}", file=sys.stderr)
                        continue
                    if found is not None:
                        lines.append(found)
                        print(" | ".join(found), flush=True)
    before, _, _ = REPORT.read_text(encoding="utf-8").partition(MARK)
    REPORT.write_text(f"{before}{MARK}\n" + "\n".join(table(HEAD, lines)), encoding="utf-8")


def trial(base: str, method: str, rows: Path) -> TrialSpec:
    """Full rows, few steps, evaluations that need less than those."""
    return TrialSpec.model_validate(
        {
            "model": base,
            "task": {"type": "causal_lm", "response": "{text}"},
            "data": {"train": str(rows), "validation": 0.1, "max_length": TOKENS},
            "adapter": {"method": method, **FIELDS.get(method, {})},
            "training": {"max_steps": STEPS, "per_device_train_batch_size": ROWS},
            "evaluation": {"per_device_eval_batch_size": 2},
        }
    )


def row(engine: PackedEngine, spec: TrialSpec, slots: int, folder: Path) -> list[str] | None:
    """A line of the table; None where such trials do not pack, or fail, which is printed."""
    base, _ = engine.solo.resident(spec, Phases())
    if slots > 1 and unpackable(spec, base) is not None:
        return None
    [told] = predict([spec], cpu_of(1 << 36, 1), LENGTHS, slots=slots)
    predicted = told.peak_bytes - sum(told.memory.get(name, 0) for name in OF_BASE)
    release(base.device)
    before = psutil.Process().memory_info().rss
    changed = threading.Condition()
    specs = [spec.with_params({"seed": seed}) for seed in range(slots)]
    jobs = [Answered(n, 1, s, folder / str(n), None, changed) for n, s in enumerate(specs)]
    if slots == 1:
        [job] = jobs
        job.end(engine.solo.run(job))
    else:
        line: Inbox = Line(jobs)
        engine.serve(line)
    result = jobs[0].result
    assert result is not None
    if result.error is not None:
        print(f"{spec.adapter.method}: {result.error}", file=sys.stderr)
        return None
    name = "peak_rss_bytes" if slots == 1 else "pack_peak_rss_bytes"
    measured = result.memory[name] - before
    off = predicted - measured
    is_near = abs(off) <= max(SHARE * measured, MEGABYTES * 1e6)
    exact = told.trainable_parameters == result.trainable_parameters
    return [
        Path(spec.model.name_or_path).name,
        spec.adapter.method,
        str(slots),
        f"{measured / 1e6:.0f}",
        f"{predicted / 1e6:.0f}",
        f"{off / 1e6:+.0f}" + ("" if is_near else " **off**"),
        "exact" if exact else f"{told.trainable_parameters:,} of {result.trainable_parameters:,}",
    ]


if __name__ == "__main__":
    main()
