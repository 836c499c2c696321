"""What a plan is made for, on a cluster: a Ray node with pretended GPUs."""

from pathlib import Path

import pytest

from peft_jobs import SpecError
from peft_jobs.host.gpus import GPUS
from sweeps.cli.devices import planned_devices
from tests.support.ray_nodes import ray_node


def test_a_plan_takes_the_gpus_of_a_cluster(tmp_path: Path) -> None:
    kind = '--resources={"accelerator_type:L4": 1}'
    with ray_node(tmp_path, "--num-cpus=1", "--num-gpus=3", kind) as node:
        assert planned_devices(None, None, None, node.address) == (GPUS["L4"], 3, [])
        assert planned_devices("L4", "H200", 8, node.address) == (GPUS["H200"], 8, [])
        with pytest.raises(SpecError, match="has no GPUs of kind A100"):
            planned_devices("A100", None, None, node.address)


def test_gpus_that_ray_does_not_know_must_be_named(tmp_path: Path) -> None:
    with ray_node(tmp_path, "--num-cpus=1", "--num-gpus=2") as node:
        with pytest.raises(SpecError, match="say what they are with --gpu"):
            planned_devices(None, None, None, node.address)
        device, number, _ = planned_devices(None, "24GB", None, node.address)
        assert (device.name, number) == ("24GB", 2)
