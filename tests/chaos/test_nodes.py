"""Machines die: a second node, its raylet, the head, a node that was announced to be taken away."""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.breaking import Broken, in_parallel, sweep_tree
from tests.support.ray_nodes import Launched, Node, ray_node, wait_for

pytestmark = pytest.mark.slow
Drive = Callable[..., Launched]


@pytest.fixture
def head(tmp_path: Path) -> Iterator[Node]:
    """A node with one core."""
    with _node(tmp_path / "head") as node:
        yield node


@pytest.fixture
def other(tmp_path: Path, head: Node) -> Iterator[Node]:
    """Another node of the same cluster."""
    with _node(tmp_path / "other", head.address) as node:
        yield node


@contextlib.contextmanager
def _node(folder: Path, address: str | None = None) -> Iterator[Node]:
    folder.mkdir()
    with ray_node(folder, "--num-cpus=1", address=address) as node:
        yield node


@pytest.fixture
def sweep(drive: Drive, tmp_path: Path, head: Node, other: Node) -> Broken:
    """A sweep with a trial on each of the two nodes."""
    options = {"num_slots": 1, "step_seconds": 0.06}
    return Broken(
        in_parallel(tmp_path / "runs", head.address, resources={"engine_options": options}),
        drive,
        nodes=(head,),
    )


@pytest.mark.parametrize("what", ["all processes", "raylet"])
def test_the_trials_of_a_dead_node_go_on_elsewhere(sweep: Broken, other: Node, what: str) -> None:
    with sweep.held():
        driver = sweep.launch()
        wait_for(lambda: driver.reported(2))
        (number,) = _trials_on(other, driver)
        died = time.monotonic()
        if what == "raylet":
            other.part("raylet").kill()
        else:
            other.kill()
    wait_for(lambda: driver.trials()[number].user_attrs["attempt"] == 2, 120)
    sweep.note(f"second node, kill -9 of {what}", time.monotonic() - died)
    sweep.finish(driver)
    sweep.check_whole()
    assert [t.user_attrs["attempt"] for t in driver.trials() if t.number != number] == [1] * 3


def test_five_nodes_die_in_turn_under_the_same_trial_and_none_counts(
    drive: Drive, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    with ray_node(tmp_path / "empty", "--num-cpus=0") as head:
        options = {"num_slots": 1, "step_seconds": 0.1}
        sweep = Broken(sweep_tree(tmp_path / "runs", head.address), drive)
        sweep.tree["budget"]["n_trials"] = 2
        sweep.tree["resources"]["engine_options"] = options
        driver = None
        for number in range(5):
            with _node(tmp_path / f"other-{number}", head.address) as other:
                driver = driver or sweep.launch()
                sweep.goes_on(driver)
                wait_for(lambda node=other, d=driver: _trials_on(node, d) == [0])
                other.kill()
                sweep.died("the only node with cores, kill -9, five times in turn")
        with _node(tmp_path / "last", head.address):
            sweep.goes_on(driver)
            sweep.finish(driver)
        sweep.check_whole()
        assert driver.trials()[0].user_attrs["attempt"] == 6


def test_a_preempted_node_is_no_failure_and_its_trial_goes_on_from_a_fresh_checkpoint(
    sweep: Broken, other: Node
) -> None:
    with sweep.held():
        driver = sweep.launch()
        wait_for(lambda: driver.reported(2))
        (number,) = _trials_on(other, driver)

        def saved() -> str:
            return Path(driver.trials()[number].user_attrs["checkpoint"]).name

        rungs = ("step-00000009", "step-00000025")
        assert saved() in rungs
        other.drain(seconds=60)
        wait_for(lambda: saved() not in rungs, 20)
        fresh = int(saved().removeprefix("step-"))
        died = time.monotonic()
        other.kill()
    wait_for(lambda: driver.trials()[number].user_attrs["attempt"] == 2, 60)
    sweep.note("node preempted, then kill -9", time.monotonic() - died)
    sweep.finish(driver)
    sweep.check_whole()
    assert driver.trials()[number].user_attrs["result"]["provenance"]["resumed_from"] >= fresh


def test_a_driver_whose_own_node_is_dead_ends_and_the_next_one_goes_on(
    sweep: Broken, head: Node, tmp_path: Path
) -> None:
    with sweep.held():
        driver = sweep.launch(flush_seconds=2)
        wait_for(lambda: driver.reported(2))
        head.process.suspend()  # `ray start --block` would take the rest of the node with it
        died = time.monotonic()
        head.part("raylet").kill()
        driver.finish(50)  # Ray itself would wait 60 s for its head
    assert driver.process.returncode == 1
    head.process.resume()
    _next_cluster(sweep, tmp_path, "head, kill -9 of its raylet", died)


def test_a_driver_whose_head_is_dead_ends_and_the_next_one_goes_on(
    sweep: Broken, head: Node, tmp_path: Path
) -> None:
    with sweep.held():
        driver = sweep.launch(flush_seconds=2)
        wait_for(lambda: driver.reported(2))
        died = time.monotonic()
        head.kill()
        driver.finish(120)
    assert driver.process.returncode != 0
    _next_cluster(sweep, tmp_path, "head, kill -9 of all processes", died)


def _next_cluster(sweep: Broken, folder: Path, fault: str, died: float) -> None:
    with _node(folder / "next") as node:
        sweep.tree["resources"]["address"] = node.address
        sweep.died(fault, died)
        sweep.complete()
        sweep.check_whole()


def _trials_on(node: Node, driver: Launched) -> list[int]:
    """Trials that run on a node and have been heard of from there."""
    log = driver.output.read_text()
    found = []
    for trial in driver.trials():
        attempt = trial.user_attrs.get("attempt")
        place = f"trial {trial.number}: attempt {attempt} is on peft-sweeps-host-{node.id}"
        if trial.state.name == "RUNNING" and place in log:
            found.append(trial.number)
    return found
