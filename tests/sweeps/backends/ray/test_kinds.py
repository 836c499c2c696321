"""Nodes of different kinds in one cluster, and trials that need several GPUs of one."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from peft_jobs import SpecError
from sweeps import SweepSpec
from sweeps.run import launch
from sweeps.study.database import open_storage
from tests.support.ray_nodes import Node, ray_node

pytestmark = pytest.mark.slow
Sweep = Callable[..., SweepSpec]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A head without trials, a node that shows Ray four of its GPUs, and one with another GPU."""

    def node(stack: contextlib.ExitStack, *options: str, **given: Any) -> Node:
        return stack.enter_context(ray_node(tmp_path_factory.mktemp("node"), *options, **given))

    with contextlib.ExitStack() as stack:
        head = node(stack, "--num-cpus=0")
        large, small = (f'--resources={{"accelerator_type:{kind}": 1}}' for kind in ("A100", "L4"))
        shown = {"CUDA_VISIBLE_DEVICES": "4,5,6,7"}
        node(stack, "--num-cpus=2", "--num-gpus=4", large, address=head.address, **shown)
        node(stack, "--num-cpus=1", "--num-gpus=1", small, address=head.address)
        yield head


def ran_on(spec: SweepSpec) -> Counter[str]:
    """CUDA_VISIBLE_DEVICES of the host of each trial that is complete."""
    database = open_storage(f"sqlite:///{spec.storage}/optuna.db")
    trials = optuna.load_study(study_name=spec.name, storage=database).get_trials()
    results = [t.user_attrs["result"] for t in trials if t.state == TrialState.COMPLETE]
    return Counter(result["provenance"]["visible_devices"] for result in results)


@pytest.fixture
def on_kind(sweep: Sweep, head: Node) -> Sweep:
    """Kind, GPUs per trial -> a sweep of eight trials on that kind."""

    def build(kind: str | None, gpus: float) -> SweepSpec:
        resources = {
            "backend": "ray",
            "address": head.address,
            "accelerator_type": kind,
            "gpus_per_trial": gpus,
            "cpus_per_trial": 0.25,
            "engine_options": {"num_slots": 1, "step_seconds": 0.1},
        }
        budget = {"n_trials": 8, "max_samples": 600}
        return sweep(resources=resources, budget=budget, pruner="none", sampler="random")

    return build


def test_a_host_has_a_group_of_the_gpus_that_ray_may_use(on_kind: Sweep) -> None:
    spec = on_kind("A100", 2)
    assert launch(spec).status == "complete"
    ran = ran_on(spec)
    assert set(ran) == {"4,5", "6,7"}
    assert ran.total() == 8


def test_trials_run_on_the_kind_of_gpu_they_ask_for(on_kind: Sweep) -> None:
    spec = on_kind("L4", 0.5)
    assert launch(spec).status == "complete"
    assert ran_on(spec) == {"0": 8}


def test_without_a_kind_all_gpus_are_used(on_kind: Sweep, tmp_path: Path) -> None:
    spec = on_kind(None, 1)
    assert launch(spec).status == "complete"
    assert set(ran_on(spec)) <= {"4", "5", "6", "7", "0"}
    assert len(ran_on(spec)) > 1


def test_a_kind_that_no_node_has_is_told(on_kind: Sweep) -> None:
    with pytest.raises(SpecError, match=r"no node of the cluster has .* of the kind 'H100'"):
        launch(on_kind("H100", 1))


def test_groups_are_whole(sweep: Sweep) -> None:
    with pytest.raises(SpecError, match=r"gpus_per_trial above 1 must be whole, got 1\.5"):
        sweep(resources={"gpus_per_trial": 1.5})
