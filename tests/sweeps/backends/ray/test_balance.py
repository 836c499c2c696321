"""All GPUs of a cluster work: real Ray, two nodes with pretend GPUs, one that joins.

Each trial and each GPU is a process of a second. So two GPUs a node are the quick case, and four a
node, with more trials, the slow ones.
"""

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


@contextlib.contextmanager
def two_nodes(folders: pytest.TempPathFactory, gpus: int) -> Iterator[Node]:
    """The first of two nodes with so many GPUs each."""
    options = ("--num-cpus=4", f"--num-gpus={gpus}")
    with (
        ray_node(folders.mktemp("head"), *options) as head,
        ray_node(folders.mktemp("other"), *options, address=head.address),
    ):
        yield head


@pytest.fixture(scope="module")
def nodes_of_four(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with two_nodes(tmp_path_factory, 4) as head:
        yield head


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


def test_no_gpu_is_idle_while_another_has_two_trials(
    sweep: Sweep, tmp_path_factory: pytest.TempPathFactory, caplog: pytest.LogCaptureFixture
) -> None:
    with two_nodes(tmp_path_factory, 2) as head:
        check_counts(sweep, head, caplog, 6, "random", "auto", [2, 2, 1, 1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n_trials", "sampler", "gpus", "counts"),
    [
        (8, "random", "auto", [1] * 8),
        (12, "random", "auto", [2] * 4 + [1] * 4),
        (40, "tpe", "auto", [2] * 2 + [1] * 6),
        (4, "random", 2, [1] * 4),
        (6, "random", 0.25, [1] * 6),
    ],
)
def test_none_of_eight_gpus_is_idle_while_another_has_two_trials(
    sweep: Sweep,
    nodes_of_four: Node,
    caplog: pytest.LogCaptureFixture,
    n_trials: int,
    sampler: str,
    gpus: float | str,
    counts: list[int],
) -> None:
    check_counts(sweep, nodes_of_four, caplog, n_trials, sampler, gpus, counts)


def check_counts(
    sweep: Sweep,
    head: Node,
    caplog: pytest.LogCaptureFixture,
    n_trials: int,
    sampler: str,
    gpus: float | str,
    counts: list[int],
) -> None:
    """So many trials run on the hosts at once, the fullest first."""
    spec = endless(
        sweep,
        head.address,
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
