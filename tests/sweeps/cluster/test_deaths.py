"""Broken on purpose: kill -9 of a proxy, of a host, of the driver; signals; orphans."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Tree = Callable[..., dict[str, Any]]
PROXY, HOST = "ray::ResourceTrainable", "ray::HostActor"  # as Ray titles its workers
SLOW = {"num_slots": 2, "step_seconds": 0.04}


def slow_tree(tree: Tree, **resources: Any) -> dict[str, Any]:
    """Four trials of 75 steps on two slots; a checkpoint at steps 9 and 25."""
    return tree(
        resources={
            "backend": "ray",
            "engine_options": SLOW,
            "cpus_per_trial": 1,
            "gpus_per_trial": 0,
            "max_concurrent": 2,
            **resources,
        },
        budget={"n_trials": 4, "max_samples": 600},
        pruner="none",
        sampler="random",
    )


def attempts(tree: dict[str, Any]) -> dict[int, list[str]]:
    trials = Path(tree["storage"]) / tree["name"] / "trials"
    return {
        int(folder.name): sorted(path.name for path in (folder / "attempts").iterdir())
        for folder in sorted(trials.iterdir())
    }


def check_ended(driver: Any, tree: dict[str, Any]) -> None:
    """Study and files agree that all four trials ran to their end."""
    trials = driver.trials()
    assert [t.state.name for t in trials] == ["COMPLETE"] * 4
    folder = Path(tree["storage"]) / tree["name"] / "trials"
    for trial in trials:
        result = json.loads((folder / f"{trial.number:04d}" / "result.json").read_text())
        assert result["state"] == "COMPLETE"
        assert result["metrics"]["validation/loss"] == trial.value
        assert (result["step"], result["samples"]) == (75, 600)


def test_a_killed_proxy_finds_its_slot_still_running(
    tree: Tree, drive: Any, wait_for: Any, one_node: Any
) -> None:
    sweep = slow_tree(tree, address=one_node.address)
    driver = drive(sweep)
    wait_for(lambda: driver.reported(2))
    proxy = one_node.workers(PROXY)[0]
    proxy.kill()
    assert "status: complete" in driver.finish()
    check_ended(driver, sweep)
    wait_for(lambda: not one_node.workers(HOST) + one_node.workers(PROXY), 10)
    assert set(map(tuple, attempts(sweep).values())) == {("1",)}
    results = [t.user_attrs["result"] for t in driver.trials()]
    assert len({result["provenance"]["pid"] for result in results}) == 1
    assert all(t.user_attrs["attempt"] == 1 for t in driver.trials())
    assert max(r["provenance"]["steps_done"] for r in results) == 4 * 75, "nothing was redone"


@pytest.mark.slow
def test_a_proxy_that_comes_back_on_another_gpu_frees_its_old_slot(
    tree: Tree, drive: Any, wait_for: Any, two_gpus: Any
) -> None:
    options = {"num_slots": 1, "step_seconds": 0.04}
    sweep = slow_tree(
        tree,
        address=two_gpus.address,
        gpus_per_trial=1,
        max_concurrent=1,
        engine_options=options,
    )
    driver = drive(sweep)
    for number in range(3):  # with a free GPU each time, so that some come back elsewhere
        wait_for(lambda number=number: len(driver.trials()) > number and driver.reported())
        two_gpus.workers(PROXY)[0].kill()
    assert "status: complete" in driver.finish()
    check_ended(driver, sweep)
    for trial in driver.trials():
        given = attempts(sweep)[trial.number]
        assert given[-1] == str(trial.user_attrs["attempt"])


def test_a_killed_host_loses_no_trial(tree: Tree, drive: Any, wait_for: Any, one_node: Any) -> None:
    sweep = slow_tree(tree, address=one_node.address)
    driver = drive(sweep)
    wait_for(lambda: driver.reported(2))
    (host,) = one_node.workers(HOST)
    host.kill()
    assert "status: complete" in driver.finish()
    check_ended(driver, sweep)
    found = attempts(sweep)
    assert found == {0: ["1", "2"], 1: ["1", "2"], 2: ["1"], 3: ["1"]}
    assert [t.user_attrs["attempt"] for t in driver.trials()] == [2, 2, 1, 1]
    last = max(
        (t.user_attrs["result"]["provenance"] for t in driver.trials()),
        key=lambda provenance: int(provenance["steps_done"]),
    )
    assert last["pid"] != host.pid
    assert last["steps_done"] < 4 * 75, "the two trials aboard went on from their checkpoints"


@pytest.mark.slow
def test_a_trial_under_which_hosts_die_again_and_again_is_lost(
    tree: Tree, drive: Any, one_node: Any
) -> None:
    sweep = slow_tree(tree, max_concurrent=1, address=one_node.address)
    sweep["budget"]["n_trials"] = 2
    sweep["resources"]["engine_options"] = {"num_slots": 1, "faults": {"0": "death"}}
    driver = drive(sweep)
    assert "status: complete" in driver.finish()
    lost, well = driver.trials()
    assert (lost.state.name, lost.user_attrs["kind"]) == ("FAIL", "lost")
    assert "3 hosts died with this trial aboard" in lost.user_attrs["result"]["error"]
    assert well.state.name == "COMPLETE"
    assert lost.user_attrs["attempt"] == 3


@pytest.mark.slow
def test_a_killed_driver_leaves_no_process_and_the_next_one_adopts(
    tree: Tree, drive: Any, wait_for: Any
) -> None:
    sweep = slow_tree(tree)
    driver = drive(sweep)
    wait_for(lambda: driver.reported(2))
    driver.process.send_signal(signal.SIGKILL)
    driver.process.wait(5)
    # Two agents of Ray's own (2.60) wait 60 s for the dead cluster before they leave as well.
    wait_for(lambda: not [name for name in driver.alive() if not name.endswith("Agent")], 10)
    assert [t.state.name for t in driver.trials()] == ["RUNNING"] * 2

    second = drive(sweep)
    assert "status: complete" in second.finish()
    check_ended(second, sweep)
    assert attempts(sweep) == {0: ["1", "2"], 1: ["1", "2"], 2: ["1"], 3: ["1"]}
    steps = [t.user_attrs["result"]["provenance"]["steps_done"] for t in second.trials()]
    assert max(steps) <= 4 * 75 - 2 * 9, "the adopted trials began at their checkpoints"


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_an_interrupted_driver_leaves_no_process_and_says_which_trials_it_left(
    tree: Tree, drive: Any, wait_for: Any, number: signal.Signals
) -> None:
    sweep = slow_tree(tree)
    driver = drive(sweep)
    wait_for(lambda: driver.reported(2))
    started = time.monotonic()
    if number == signal.SIGINT:  # as a terminal does: to the whole group
        os.killpg(driver.process.pid, number)
    else:
        driver.process.send_signal(number)
    output = driver.finish()
    assert time.monotonic() - started < 15
    assert "status: interrupted" in output
    assert "Traceback" not in output
    trials = driver.trials()
    assert [t.state.name for t in trials] == ["RUNNING"] * 2
    assert all("interrupted_at" in t.user_attrs for t in trials)
    wait_for(lambda: not driver.alive(), 10)
    results = Path(sweep["storage"], sweep["name"], "trials").rglob("result.json")
    assert list(results) == []
