"""Whole sweeps: what people do, the engines alone, and the product, each in processes of its own.

    python infra/benchmarks/sweep_arms.py ARM FOLDER

runs one arm on the `config.json` in FOLDER (`packing.py sweep` writes it and calls this) and leaves
`ARM.json`. Start-up is the time until the first trial can train: processes, imports, Ray, base.
"""

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plain_arms import SPACE, Config, processes, ray_tune, summed


def engine(config: Config, folder: Path, name: str) -> dict[str, Any]:
    """B1, B2, B4 and B5: all trials on an engine, without a driver."""
    began = time.time()
    import arms
    import runs
    from dequantized import dequantized, holding

    from peft_jobs.engines.solo.solo_engine import SoloEngine
    from peft_jobs.spec import TrialSpec

    imported = time.time()
    spec = TrialSpec.model_validate(trial_tree(config))
    cache = str(folder / "cache")
    solo = SoloEngine(cache, threads=config["threads"])
    base, data = solo.check(spec)
    if name.startswith("B2"):
        fast = dequantized(base, compiled=name == "B2-compiled")
        solo = holding(fast, data, cache, config["threads"])
    ready = time.time()
    specs = [spec.with_params({"seed": seed}) for seed in range(config["trials"])]
    make = {"B4": arms.looped, "B5": arms.auto}.get(name, arms.solo)
    ran = runs.run(make(solo, config["slots"]), specs)
    ended = time.time()
    results = [job.ended_as for job in ran.jobs]
    where = {"import": imported - began, "base and data": ready - imported, "trials": ended - ready}
    return {
        "startup_seconds": ready - config["spawned"],
        **trials_of([result.model_dump(mode="json") for result in results]),
        "where": where | summed([result.seconds for result in results], "phase "),
    }


def product(config: Config, folder: Path, name: str, prune: bool, solo: bool) -> dict[str, Any]:
    """The product's own sweep: B9 and B6 with pruning over SPACE, B5 over B1's seeds without."""
    began = time.time()
    from sweeps import build_sweep
    from sweeps.records.layout import SweepFolder
    from sweeps.run import LaunchCallbacks, launch

    parameters: dict[str, Any] = {"seed": {"choices": list(range(config["trials"]))}}
    if prune:
        low, high = SPACE["learning_rate"]
        parameters = {
            "adapter.r": {"choices": SPACE["r"]},
            "adapter.lora_alpha": {"expression": "2 * adapter.r"},
            "adapter.target_modules": {"choices": ["attention-qv", "attention", "all-linear"]},
            "training.learning_rate": {"low": low, "high": high, "log": True},
        }
    tree = trial_tree(config)
    tree["training"].pop("max_steps")
    spec = build_sweep(
        {
            **tree,
            "name": name,
            "seed": config["seed"],
            "space": {"parameters": parameters},
            "sampler": "tpe" if prune else "grid",
            "pruner": {"type": "successive_halving", "reduction_factor": 4} if prune else "none",
            "budget": {
                "n_trials": config["trials"],
                "max_steps": config["steps"],
                "num_rungs": 1 if prune else 0,
            },
            "resources": {
                "backend": "ray" if name.endswith("-ray") else "inline",
                "engine": "solo" if solo else "packed",
                "slots_per_gpu": 1 if solo else config["slots"],
                "engine_options": threads_of(config),
            },
            "tracking": config.get("tracking", "none"),
            "storage": str(folder / name),
        }
    )
    marks: dict[str, float] = {}

    def prepared(*_: Any) -> None:
        marks.setdefault("prepared", time.time())

    def changed(driver: Any) -> None:
        if driver.running:
            marks.setdefault("started", time.time())
        marks["last"] = time.time()

    imported = time.time()
    launch(spec, callbacks=LaunchCallbacks(on_prepared=prepared, on_change=changed))
    ended = time.time()
    paths = sorted(SweepFolder.of(spec).path.glob("trials/*/result.json"))
    results = [json.loads(path.read_text()) for path in paths]
    results.sort(key=lambda result: int(result["provenance"].get("seed", 0)))
    where = {
        "import": imported - began,
        "backend, base and data": marks["prepared"] - imported,
        "first trial": marks["started"] - marks["prepared"],
        "trials": marks["last"] - marks["started"],
        "end": ended - marks["last"],
    }
    return {
        "startup_seconds": marks["started"] - config["spawned"],
        **trials_of(results),
        "where": where | summed([result["seconds"] for result in results], "phase "),
    }


def threads_of(config: Config) -> dict[str, int]:
    """The number that was asked for; the product's own choice where it is all of the machine's."""
    return {} if config["threads"] == os.cpu_count() else {"threads": config["threads"]}


def trial_tree(config: Config) -> dict[str, Any]:
    """The sections of a TrialSpec."""
    return {
        "model": config["model"],
        "quantization": config["quantization"],
        "adapter": {"r": 8, "target_modules": "all-linear"},
        "task": {"type": "causal_lm", "prompt": config["prompt"], "response": config["response"]},
        "data": {
            "train": config["train"],
            "validation": config["validation"],
            "max_length": config["length"],
        },
        "training": {
            "per_device_train_batch_size": config["rows"],
            "learning_rate": 3e-3,
            "max_steps": config["steps"],
        },
    }


def trials_of(results: list[Mapping[str, Any]]) -> dict[str, Any]:
    """What the results of a sweep's trials say together."""
    done = [result for result in results if result["state"] == "COMPLETE"]
    wrong = [result["error"] for result in results if result["state"] == "FAIL"]
    return {
        "completed": len(done),
        "errors": len(wrong),
        "steps_done": sum(result["step"] for result in results),
        "supervised_tokens": sum(result["tokens"] for result in results),
        "losses": [result["metrics"]["validation/loss"] for result in done],
    }


def run_arm(name: str, folder: Path) -> dict[str, Any]:
    """One arm, here."""
    config = json.loads((folder / "config.json").read_text())
    if name.startswith(("B0", "B3")):
        return processes(config, folder, int(name.partition("-")[2] or 0))
    if name == "B7":
        return ray_tune(config, folder)
    if name in ("B1", "B2", "B2-compiled", "B4", "B5"):
        return engine(config, folder, name)
    return product(config, folder, name, prune=not name.startswith("B5"), solo=name == "B6")


if __name__ == "__main__":
    arm, where = sys.argv[1], Path(sys.argv[2])
    (where / f"{arm}.json").write_text(json.dumps(run_arm(arm, where)))
