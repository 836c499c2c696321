"""A sweep on a machine where others use a core: it yields that core, and does not collapse."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.busy_cores import busy_cores

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
ENVIRONMENT = {name: value for name, value in os.environ.items() if "OMP_" not in name}


def steps_per_second(tree: dict[str, Any], name: str) -> float:
    """Of training, in a process of its own: OpenMP looks at the environment once."""
    storage = Path(tree["storage"])
    file = storage.with_name(f"{name}.yaml")
    file.write_text(yaml.safe_dump({**tree, "name": name}))
    command = [sys.executable, "-m", "sweeps.cli", "run", str(file), "--inline"]
    subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True, timeout=500)
    paths = storage.glob(f"{name}/trials/*/result.json")
    results = [json.loads(path.read_text()) for path in paths]
    assert len(results) == tree["budget"]["n_trials"]
    seconds = sum(result["seconds"]["train"] for result in results)
    return float(sum(result["step"] for result in results) / seconds)


@pytest.mark.slow
@pytest.mark.skipif(CORES < 2, reason="needs a core beside the busy one")
@pytest.mark.parametrize("engine", ["solo", "packed"])
def test_with_one_core_busy_steps_stay_above_0_4_of_the_quiet_machine(
    tree: Callable[..., dict[str, Any]], engine: str
) -> None:
    whole = tree(
        resources={"backend": "inline", "engine": engine, "slots_per_gpu": 4},
        training={"per_device_train_batch_size": 4},
        budget={"n_trials": 4, "max_samples": 1200, "num_rungs": 0},
        pruner="none",
    )
    quiet = steps_per_second(whole, "quiet")
    with busy_cores(1):
        busy = steps_per_second(whole, "busy")
    assert busy > 0.4 * quiet
