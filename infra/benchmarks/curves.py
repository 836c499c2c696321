"""Trains the trials of two spaces to their ends, and keeps what each rung would have seen.

    .venv/bin/python infra/benchmarks/curves.py --models DIR --data DIR [--storage DIR]

Writes `curves.json`, from which `regret.py` replays sweeps in any order under any pruner. The
spaces are LoRA's and that of several methods, each drawn at random under three seeds.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from peft_jobs.provenance import environment
from sweeps import SweepSpec, build_sweep, open_sweep
from sweeps.run import launch

HERE = Path(__file__).parent
SEEDS = (0, 1, 2)
PARTS = (9, 6, 4, 3, 2)
"""Rungs are at one part of so many of a trial."""
BASE: dict[str, Any] = {
    "task": {"type": "causal_lm", "prompt": "{mr}\n", "response": "{ref}"},
    "training": {
        "per_device_train_batch_size": 8,
        "lr_scheduler_type": "linear",
        "warmup_steps": 0.1,
    },
    "evaluation": {"per_device_eval_batch_size": 64},
    "sampler": "random",
    "pruner": "none",
    "tracking": "none",
    "resources": {"backend": "inline", "slots_per_gpu": 6, "engine_options": {"threads": 1}},
}
METHODS = ("lora", "adalora", "loha", "oft", "ia3", "full")
SPACES: dict[str, dict[str, Any]] = {
    "lora": {
        "quantization": {"scheme": "nf4", "bnb_4bit_use_double_quant": True},
        "space": {
            "parameters": {
                "adapter.r": {"choices": [2, 4, 8, 16, 32]},
                "adapter.lora_alpha": {"choices": [4, 8, 16, 32, 64]},
                "adapter.target_modules": {"choices": ["attention-qv", "attention", "all-linear"]},
                "training.learning_rate": {"low": 3e-4, "high": 2e-2, "log": True},
            }
        },
        "budget": {"n_trials": 8, "max_samples": 480},
    },
    "methods": {
        "quantization": "none",
        "space": {
            "parameters": {
                "adapter.method": {"choices": [*METHODS]},
                "adapter.r": {
                    "choices": [4, 8, 16, 32],
                    "when": "adapter.method in ['lora', 'loha']",
                },
                "adapter.lora_alpha": {
                    "expression": "2 * adapter.r",
                    "when": "adapter.method == 'lora'",
                },
                "adapter.alpha": {
                    "expression": "adapter.r",
                    "when": "adapter.method == 'loha'",
                },
                "adapter.target_modules": {
                    "expression": "'all-linear'",
                    "when": "adapter.method not in ['ia3', 'full']",
                },
                "training.learning_rate": {
                    "low": 1e-3,
                    "high": 1e-2,
                    "log": True,
                    "times": "10 if adapter.method == 'ia3' else "
                    "3 if adapter.method in ['adalora', 'loha'] else 1",
                },
            }
        },
        "budget": {"n_trials": 8, "max_samples": 480},
    },
}
"""As in `shows/lora-e2e.yaml` and, with fewer methods, `shows/methods-e2e.yaml`."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, help="folder that holds stories260k")
    parser.add_argument("--data", type=Path, help="folder of nlg/")
    parser.add_argument("--storage", type=Path, default=Path("runs"))
    parser.add_argument("--only", nargs="+", default=[*SPACES], choices=[*SPACES])
    parser.add_argument("--report", action="store_true", help="train nothing: what is complete")
    options = parser.parse_args()
    storage = options.storage.absolute()
    if not options.report:
        for seed, name in product(SEEDS, options.only):
            launch(sweep_of(name, seed, options.models, options.data, storage))
            print(name, seed, flush=True)
    found = {
        "environment": environment(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "date": time.strftime("%Y-%m-%d"),
        "spaces": {
            name: [trial for seed in SEEDS for trial in complete(storage, f"{name}-{seed}")]
            for name in options.only
        },
    }
    (HERE / "curves.json").write_text(json.dumps(found, indent=1) + "\n")


def sweep_of(name: str, seed: int, models: Path, data: Path, storage: Path) -> SweepSpec:
    """A space's sweep under one seed, with rungs at each of PARTS."""
    space = SPACES[name]
    rungs = [-(-space["budget"]["max_samples"] // part) for part in PARTS]
    return build_sweep(
        {
            **BASE,
            **space,
            "name": f"{name}-{seed}",
            "model": str(models / "stories260k"),
            "data": {
                "train": str(data / "nlg" / "e2e_dev.csv"),
                "validation": str(data / "nlg" / "e2e_test.csv"),
                "validation_subset": 48,
                "max_length": 256,
            },
            "budget": {**space["budget"], "rungs": rungs},
            "storage": str(storage),
            "seed": seed,
        }
    )


def complete(storage: Path, name: str) -> Iterator[dict[str, Any]]:
    """The trials of a sweep that ran to their ends: parameters, losses by samples, final loss."""
    sweep = open_sweep(storage, name)
    for trial in sweep.study.launched():
        if trial.value is not None:
            yield {
                "sweep": name,
                "number": trial.number,
                "params": trial.user_attrs["params"],
                "samples": sweep.spec.trial.training.max_samples,
                "rungs": trial.intermediate_values,
                "final": trial.value,
            }


if __name__ == "__main__":
    main()
