"""Whether packed trials are solo ones on this device, and what a step costs and why.

    python infra/benchmarks/gpu_probe.py OUT.json [--seconds 120] [--dry-run]

Part (3) of `infra/gpu_check.sh`. Each finding is written as soon as it is made; what fails says so
and ends nothing else. Needs no network, no Ray, no Optuna, no MLflow.
"""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import argparse
import functools
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from arms import packed
from dequantized import holding
from gpu_trial import trial
from gpu_window import Window
from random_base import SHAPES, let_go, make_base, make_data
from runs import Until, difference, run
from shapes import draw_once

from peft_jobs.base.loading import Base
from peft_jobs.device.this_device import this_device
from peft_jobs.engines.packed.eligibility import unpackable
from peft_jobs.engines.solo.solo_engine import SoloEngine
from peft_jobs.spec import TrialSpec
from peft_jobs.storage.files import write_json

R = 32
FIRST, LAST = 4, 7
"""Steps between whose reports a window is profiled."""
TIMED_STEPS = 12
PARITY_STEPS = 20
DROPOUT = 0.05


@dataclass(frozen=True)
class Case:
    """Where steps are looked at: a shape, tokens of a trial-step, numbers of slots."""

    shape: str
    tokens: int
    slots: Sequence[int]
    churns: bool = False
    """Whether trials come and go too, which are trained to their ends and saved."""


CASES = (Case("0.5B", 256, (16, 4, 8), churns=True), Case("7B", 128, (8, 2)))
DRY_CASES = (Case("tiny", 32, (4,), churns=True),)


@dataclass
class Findings:
    """What was found so far, in a file; and until when there is time."""

    path: Path
    deadline: float
    content: dict[str, Any] = field(default_factory=lambda: {"failed": {}, "skipped": []})

    def look(self, part: str, name: str, look: Callable[[], dict[str, Any]]) -> None:
        """Add a finding to a part; or why there is none."""
        title = f"{part}: {name}"
        if time.monotonic() > self.deadline:
            self.content["skipped"].append(title)
        else:
            began = time.monotonic()
            try:
                found = {"name": name, **look(), "seconds": round(time.monotonic() - began, 1)}
                self.content.setdefault(part, []).append(found)
                print(title, found, flush=True)
            except Exception as error:
                text = "".join(traceback.format_exception(error))
                self.content["failed"][title] = text[-2000:]
                print(title, "FAILED", text, flush=True)
        write_json(self.path, self.content)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes, on any device")
    options = parser.parse_args(arguments)
    if not (options.dry_run or torch.cuda.is_available()):
        print("gpu_probe.py: needs a CUDA device (--dry-run does not)", file=sys.stderr)
        return 2
    findings = Findings(options.out, time.monotonic() + options.seconds)
    draw_once()
    for bf16 in (True, False):
        name = "bfloat16 autocast" if bf16 else "no autocast"
        findings.look("parity", name, functools.partial(parity, bf16, options))
    for case in DRY_CASES if options.dry_run else CASES:
        look_at(case, findings, options.threads)
        let_go()
    return 0


def parity(bf16: bool, options: argparse.Namespace) -> dict[str, Any]:
    """Four trials of the demo in NF4 with double quantization and dropout, packed and alone."""
    num_steps = 5 if options.dry_run else PARITY_STEPS
    content = {
        "model": "demo",
        "quantization": {"scheme": "nf4", "bnb_4bit_use_double_quant": True},
        "adapter": {"r": 8, "lora_dropout": DROPOUT, "target_modules": "all-linear"},
        "task": {"type": "causal_lm", "prompt": "{record}\n", "response": "{sentence}"},
        "data": {"train": "demo", "validation": "demo", "max_length": 128, "subset": 200},
        "training": {
            "per_device_train_batch_size": 4,
            "learning_rate": 5e-3,
            "max_steps": num_steps,
            "logging_steps": 1,
            "bf16": bf16,
        },
    }
    spec = TrialSpec.model_validate(content)
    with tempfile.TemporaryDirectory() as cache:
        engine = SoloEngine(cache, threads=options.threads)
        base, _ = engine.check(spec)
        specs = [spec.with_params({"seed": seed}) for seed in range(4)]
        until = Until(num_steps - 1)
        alone, together = run(engine, specs, until), run(packed(engine, 4), specs, until)
    return {
        "not_packed_because": unpackable(spec, base),
        "largest_loss": max(max(job.losses) for job in alone.jobs),
        "learned": alone.jobs[0].losses[0] - alone.jobs[0].losses[-1],
        **difference(together, alone),
    }


def look_at(case: Case, findings: Findings, threads: int) -> None:
    """Steps of a case: alone and packed, without dropout and with it; memory; coming and going."""
    made: list[Base] = []

    def engine() -> SoloEngine:
        if not made:
            made.append(make_base(case.shape, this_device()))
        data = make_data(case.tokens, SHAPES[case.shape]["vocab_size"])
        return holding(made[0], data, cache, threads)

    name = f"{case.shape}, {case.tokens} tokens"
    with tempfile.TemporaryDirectory() as cache:
        for slots in (case.slots[0], 1, *case.slots[1:]):
            for dropout in (0.0, DROPOUT):
                findings.look(
                    "steps",
                    f"{name}, K={slots}, dropout {dropout:g}",
                    functools.partial(step, engine, case, slots, dropout),
                )
        if case.churns:
            findings.look("churn", name, functools.partial(churn, engine, case))


def trials(case: Case, num: int, every: int, dropout: float = 0.0) -> list[TrialSpec]:
    """Trials without an end, as in table `gpu`."""
    options = argparse.Namespace(r=R, checkpointing=10**9)
    params = {"training.max_steps": 10**4, "training.logging_steps": every}
    spec = trial(options, case.tokens).with_params({**params, "adapter.lora_dropout": dropout})
    return [spec.with_params({"seed": seed}) for seed in range(num)]


def step(make: Callable[[], SoloEngine], case: Case, slots: int, dropout: float) -> dict[str, Any]:
    """A step of so many trials, or of one by the solo engine: counted, then timed."""
    engine = make()
    arm: Any = engine if slots == 1 else packed(engine, slots)
    window = Window(FIRST, LAST)
    counted = run(arm, trials(case, slots, 1, dropout), Until(LAST + 1), window)
    timed = run(arm, trials(case, slots, TIMED_STEPS, dropout), Until(TIMED_STEPS))
    step_ms = 1e3 * timed.seconds * slots / timed.trial_steps
    memory = timed.jobs[0].ended_as.memory
    return {
        "shape": case.shape,
        "tokens": case.tokens,
        "slots": slots,
        "dropout": dropout,
        "all_at_once": counted.together and timed.together,
        "step_ms": step_ms,
        "processor_ms": 1e3 * timed.processor_seconds * slots / timed.trial_steps,
        **window.found,
        "gpu_idle_ms": max(0.0, step_ms - window.found["gpu_ms"]),
        "peak_bytes": timed.peak_bytes,
        "peak_reserved_bytes": memory.get(
            "pack_peak_reserved_bytes", memory.get("peak_reserved_bytes", 0)
        ),
    }


def churn(make: Callable[[], SoloEngine], case: Case) -> dict[str, Any]:
    """Short trials that come and go, against the same trials in step with each other."""
    slots = min(4, case.slots[0])
    arm = packed(make(), slots)
    told: dict[str, Any] = {}
    for name, lengths in (
        ("steady", [8] * slots),
        ("coming_and_going", [4 + 2 * (number % slots) for number in range(2 * slots)]),
    ):
        specs = [
            spec.with_params({"training.max_steps": length})
            for spec, length in zip(trials(case, len(lengths), 2), lengths, strict=True)
        ]
        before, began = arm.rounds.steps, time.perf_counter()
        run(arm, specs)
        spent = time.perf_counter() - began
        told[f"{name}_ms_of_a_trial_step"] = 1e3 * spent / sum(lengths)
        told[f"{name}_packed_steps"] = arm.rounds.steps - before
    return {"slots": slots, **told}


if __name__ == "__main__":
    sys.exit(main())
