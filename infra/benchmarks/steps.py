"""Table `steps`: solo and packed on the same resident base, tokens by quantization by slots."""

import argparse
import tempfile
import time
from typing import Any

from arms import Arm
from cells import Cells, measure

from peft_jobs.engines.solo.solo_engine import SoloEngine
from peft_jobs.spec import TrialSpec

ROWS_BY_LENGTH = {
    32: (1, 32),
    64: (1, 64),
    128: (2, 64),
    256: (4, 64),
    512: (4, 128),
    1024: (8, 128),
}
"""Tokens of a trial-step -> its rows and their length."""
COMPARED = 8


def run_all(options: argparse.Namespace) -> None:
    """The cells of all quantizations and tokens, each with an even share of the time."""
    began = time.monotonic()
    kinds = [(scheme, tokens) for scheme in options.quantization for tokens in options.tokens]
    with tempfile.TemporaryDirectory() as cache:
        engine = SoloEngine(cache, threads=options.threads)
        run = options.record.begin("steps", options.command, threads=options.threads)
        for number, (scheme, tokens) in enumerate(kinds):
            spec = TrialSpec.model_validate(trial(options, scheme, *ROWS_BY_LENGTH[tokens]))
            base, _ = engine.check(spec)
            setting = {
                "model": options.model_name,
                "parameters": base.model.num_parameters(),
                "quantization": scheme,
                "tokens": tokens,
            }
            left = began + options.seconds - time.monotonic()
            cells = Cells(
                spec,
                options.slots,
                options.repeats,
                options.arm_seconds,
                warm_steps=8,
                compared=COMPARED,
                longest=options.run_seconds,
                deadline=time.monotonic() + left / (len(kinds) - number),
            )
            arms = [Arm.named(name, engine) for name in options.arms]
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
