"""All GPUs of a cluster work: real Ray, two nodes with four pretend GPUs each, one that joins."""

import contextlib
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sweeps import SweepSpec
from sweeps.driver.driver import Driver
from sweeps.run import LaunchCallbacks, launch
from tests.support.ray_nodes import Node, ray_node

Sweep = Callable[..., SweepSpec]
OF_FOUR = ("--num-cpus=4", "--num-gpus=4")


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Node]]:
    with contextlib.ExitStack() as stack:
        head = stack.enter_context(ray_node(tmp_path_factory.mktemp("head"), *OF_FOUR))
        folder = tmp_path_factory.mktemp("other")
        yield [head, stack.enter_context(ray_node(folder, *OF_FOUR, address=head.address))]


def hosts_of(told: str) -> dict[int, str]:
    """The host of each trial, as the driver was told with the trial's first report."""
    found = re.findall(r"trial (\d+): attempt \d+ is on peft-sweeps-host-(\S+)", told)
    return {int(number): host for number, host in found}


def endless(sweep: Sweep, address: str, **sections: Any) -> SweepSpec:
    """A sweep whose trials report after their first step, and do not end."""
    resources = {
        "backend": "ray",
        "address": address,
        "cpus_per_trial": 0.05,
        "engine_options": {"num_slots": 8, "step_seconds": 0.05},
        **sections.pop("resources", {}),
    }
    budget = {"max_samples": 10**6, "rungs": [8], **sections.pop("budget")}
    given = {"sampler": "random", "pruner": "none", **sections}
    return sweep(resources=resources, budget=budget, **given)


def stop_after(count: int) -> LaunchCallbacks:
    """Stop once so many trials have reported and run."""

    def on_change(driver: Driver) -> None:
        reported = [r for r in driver.running.values() if r.progress is not None]
        if len(reported) >= count:
            driver.request_stop()

    return LaunchCallbacks(on_change=on_change)


@pytest.mark.parametrize(
    ("n_trials", "sampler", "gpus", "counts"),
    [
        pytest.param(8, "random", "auto", [1] * 8, marks=pytest.mark.slow),
        (12, "random", "auto", [2] * 4 + [1] * 4),
        pytest.param(40, "tpe", "auto", [2] * 2 + [1] * 6, marks=pytest.mark.slow),
        pytest.param(4, "random", 2, [1] * 4, marks=pytest.mark.slow),
        pytest.param(6, "random", 0.25, [1] * 6, marks=pytest.mark.slow),
    ],
)
def test_no_gpu_is_idle_while_another_has_two_trials(
    sweep: Sweep,
    nodes: list[Node],
    caplog: pytest.LogCaptureFixture,
    n_trials: int,
    sampler: str,
    gpus: float | str,
    counts: list[int],
) -> None:
    spec = endless(
        sweep,
        nodes[0].address,
        resources={"gpus_per_trial": gpus},
        budget={"n_trials": n_trials},
        sampler=sampler,
    )
    with caplog.at_level(logging.INFO, "sweeps.backends.ray.bridge"):
        launch(spec, callbacks=stop_after(sum(counts)))
    assert sorted(Counter(hosts_of(caplog.text).values()).values(), reverse=True) == counts


@pytest.mark.slow
def test_a_node_of_another_size_joins_and_a_node_dies(
    sweep: Sweep, caplog: pytest.LogCaptureFixture, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with contextlib.ExitStack() as stack:
        head = stack.enter_context(ray_node(tmp_path_factory.mktemp("h"), "--num-cpus=0"))

        def join(gpus: int) -> Node:
            options = ("--num-cpus=4", f"--num-gpus={gpus}")
            folder = tmp_path_factory.mktemp("node")
            return stack.enter_context(ray_node(folder, *options, address=head.address))

        dies = [join(2)]
        join(1)
        spec = endless(
            sweep,
            head.address,
            resources={"slots_per_gpu": 4, "max_concurrent": 5},
            budget={"n_trials": 5},
        )

        def on_change(driver: Driver) -> None:
            hosts = hosts_of(caplog.text)
            reported = [r for r in driver.running.values() if r.progress is not None]
            if dies and len(reported) == 5:
                before.update(hosts.values())
                join(4)
                dies.pop().kill()
            elif not dies and all(dead not in host for host in hosts.values()):
                driver.request_stop()

        dead, before = dies[0].id, Counter[str]()
        with caplog.at_level(logging.INFO, "sweeps.backends.ray.bridge"):
            launch(spec, callbacks=LaunchCallbacks(on_change=on_change))
    assert sorted(before.values()) == [1, 2, 2]
    after = Counter(hosts_of(caplog.text).values())
    assert not any(dead in host for host in after)
    moved = sum(count for host, count in before.items() if dead in host)
    stayed = max(count for host, count in before.items() if dead not in host)
    assert sorted(after.values(), reverse=True) == [stayed, *[1] * moved]
