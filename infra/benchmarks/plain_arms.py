"""Whole sweeps without this project: fresh processes, a pool of processes, plain Ray Tune."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SPACE: dict[str, Any] = {
    "r": [2, 4, 8, 16, 32],
    "target_modules": [
        ["q_proj", "v_proj"],
        ["q_proj", "k_proj", "v_proj", "o_proj"],
        "all-linear",
    ],
    "learning_rate": [1e-3, 1e-2],
}
"""Of the arms that prune."""
Config = dict[str, Any]


def processes(config: Config, folder: Path, num: int) -> dict[str, Any]:
    """B0 (`num` = 0): a fresh process for each trial, one after the other; B3: a pool of `num`.

    Of B0 `run_trials` may be fewer than all, whose makespan then follows from theirs.
    """
    run = config["trials"] if num else config["run_trials"]
    trials = [plain_trial(config, folder / f"plain-{seed}", seed) for seed in range(run)]
    for trial in trials:
        trial["threads"] = max(1, config["threads"] // max(1, num))
        Path(trial["output"]).mkdir(parents=True)
    began = time.time()
    if num == 0:
        results = [fresh(trial) for trial in trials]
    else:
        with ProcessPoolExecutor(num, mp_context=get_context("spawn")) as pool:
            results = list(pool.map(pooled, trials))
    scale = config["trials"] / run
    wall = (time.time() - began) * scale
    where = summed([result["seconds"] for result in results])
    startup = sum(
        where[part] for part in ("process", "import", "load", "tokenize") if part in where
    )
    return {
        "startup_seconds": startup * scale / max(1, num),
        "wall": wall,
        "completed": len(results),
        "extrapolated": run < config["trials"],
        "steps_done": config["trials"] * config["steps"],
        "supervised_tokens": sum(result["supervised_tokens"] for result in results) * scale,
        "adapters": {result["adapter"]: result["eval_loss"] for result in results},
        "where": where,
    }


def fresh(trial: Config) -> dict[str, Any]:
    """A trial in a process of its own; `process` is what Python and the imports' rest took."""
    path = Path(trial["output"], "trial.json")
    path.write_text(json.dumps(trial))
    began = time.time()
    subprocess.run(
        [sys.executable, str(HERE / "plain.py"), str(path)], check=True, capture_output=True
    )
    spent = time.time() - began
    result: dict[str, Any] = json.loads(Path(trial["output"], "result.json").read_text())
    result["seconds"]["process"] = spent - sum(result["seconds"].values())
    return result


def pooled(trial: Config) -> dict[str, Any]:
    """A trial in a process of the pool."""
    import plain

    return plain.train(trial)


def plain_trial(config: Config, output: Path, seed: int) -> Config:
    """What `plain.train` takes."""
    same = ("model", "train", "validation", "prompt", "response", "quantization", "steps")
    return {
        **{name: config[name] for name in same},
        "batch": config["rows"],
        "max_length": config["length"],
        "r": 8,
        "target_modules": "all-linear",
        "learning_rate": 3e-3,
        "seed": seed,
        "output": str(output),
    }


def ray_tune(config: Config, folder: Path) -> dict[str, Any]:
    """B7: plain Ray Tune, in a process of its own."""
    output = folder / "tune"
    output.mkdir()
    trial = plain_trial(config, output, config["seed"]) | {"eval_steps": config["steps"] // 4}
    path = output / "tune.json"
    given = {"trial": trial, "space": SPACE, "trials": config["trials"], "output": str(output)}
    path.write_text(json.dumps(given | {"script": str(HERE / "plain.py")}))
    began = time.time()
    environment = {**os.environ, "RAY_AIR_NEW_OUTPUT": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    subprocess.run(
        [sys.executable, str(HERE / "plain.py"), str(path)], check=True, env=environment,
        capture_output=True,
    )  # fmt: skip
    wall = time.time() - began
    found: dict[str, Any] = json.loads((output / "result.json").read_text())
    where = found.pop("where")
    return found | {
        "startup_seconds": where["import ray"] + where["ray.init"],
        "wall": wall,
        "completed": len(found["adapters"]),
        "where": where | summed(found.pop("phases"), "trials: "),
    }


def summed(seconds: list[Mapping[str, float]], prefix: str = "") -> dict[str, float]:
    """Seconds by phase, over all trials."""
    names = dict.fromkeys(name for one in seconds for name in one)
    return {f"{prefix}{name}": sum(one.get(name, 0.0) for one in seconds) for name in names}
