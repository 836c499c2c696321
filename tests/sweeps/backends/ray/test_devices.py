"""Ray's host trains on the node's real device, a GPU where there is one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from peft_jobs.device.this_device import this_device
from sweeps.results.recorded_sweep import open_sweep
from tests.support.devices import CPU, CUDA
from tests.support.ray_nodes import Launched


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_a_host_of_ray_trains_on_the_device_of_its_node(
    tree: Callable[..., dict[str, Any]], drive: Callable[..., Launched], device: str
) -> None:
    if this_device().type != device:
        pytest.skip("Ray finds another device: hide the GPUs, CUDA_VISIBLE_DEVICES=''")
    driver = drive(
        tree(
            resources={"backend": "ray", "engine": "packed", "slots_per_gpu": 3},
            budget={"n_trials": 3, "max_samples": 32},
            data={"validation_subset": 16},
            training={"per_device_train_batch_size": 4},
            sampler="random",
            pruner="none",
        )
    )
    assert "status: complete" in (output := driver.finish()), output
    trials = open_sweep(Path(driver.tree["storage"]), driver.tree["name"]).study.trials()
    assert len(trials) == 3
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    for trial in trials:
        result = trial.user_attrs["result"]
        assert (result["provenance"]["engine"], result["provenance"]["device"]) == ("packed", name)
        assert (result["memory"].get("peak_allocated_bytes", 0) > 0) == (device == "cuda")
