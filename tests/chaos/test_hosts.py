"""A trial's proxy or its host dies."""

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.breaking import Broken
from tests.support.left_behind import TrialRecord
from tests.support.ray_nodes import HOST, PROXY, Launched, Node, ray_node, titled, wait_for

Sweep = Callable[..., Broken]


def attempts(sweep: Broken) -> dict[int, list[str]]:
    """The attempts of each trial, as its folders show them."""
    return {
        int(folder.name): sorted(path.name for path in (folder / "attempts").iterdir())
        for folder in sorted((sweep.folder / "trials").iterdir())
    }


def provenance(sweep: Broken) -> list[dict[str, Any]]:
    results = sorted((sweep.folder / "trials").glob("*/result.json"))
    return [json.loads(path.read_text())["provenance"] for path in results]


def without_a_proxy(sweep: Broken, node: Node) -> Launched:
    """A driver that goes on after one of its two proxies was killed."""
    with sweep.held():
        driver = sweep.launch()
        wait_for(lambda: driver.reported(2))
        node.workers(PROXY)[0].kill()
        sweep.died("proxy, kill -9")
    sweep.goes_on(driver)
    return driver


def test_a_killed_proxy_and_then_a_killed_host_lose_no_trial(
    two_at_a_time: Sweep, one_node: Node
) -> None:
    sweep = two_at_a_time()
    driver = without_a_proxy(sweep, one_node)
    with sweep.held():
        wait_for(driver.reported)
        one_node.workers(HOST)[0].kill()
        sweep.died("host, kill -9")
    sweep.goes_on(driver)
    sweep.finish(driver)
    sweep.check_whole()


def test_a_host_that_dies_while_the_base_loads_is_only_a_host(two_at_a_time: Sweep) -> None:
    sweep = two_at_a_time(address=None)
    driver = sweep.launch("host.preparing")
    wait_for(sweep.marker.exists)
    sweep.died("host, kill -9 while the base loads")
    sweep.goes_on(driver)
    sweep.finish(driver)
    sweep.check_whole()


@pytest.mark.slow
def test_a_killed_proxy_finds_its_slot_still_running(two_at_a_time: Sweep, one_node: Node) -> None:
    sweep = two_at_a_time()
    driver = without_a_proxy(sweep, one_node)
    sweep.finish(driver)
    sweep.check_whole()
    assert set(map(tuple, attempts(sweep).values())) == {("1",)}
    assert max(p["steps_done"] for p in provenance(sweep)) == 4 * 75, "nothing was redone"


@pytest.mark.slow
def test_a_killed_host_loses_no_trial(two_at_a_time: Sweep, one_node: Node) -> None:
    sweep = two_at_a_time()
    with sweep.held():
        driver = sweep.launch()
        wait_for(lambda: driver.reported(2))
        (host,) = one_node.workers(HOST)
        aboard = [t.number for t in driver.trials() if t.state.name == "RUNNING"]
        host.kill()
        sweep.died("host, kill -9")
    sweep.goes_on(driver)
    sweep.finish(driver)
    sweep.check_whole()
    again = {number for number, tried in attempts(sweep).items() if tried == ["1", "2"]}
    assert again
    assert again <= set(aboard)
    assert all(tried == ["1"] for n, tried in attempts(sweep).items() if n not in again)
    assert max(p["steps_done"] for p in provenance(sweep)) <= 4 * 75 - len(again) * 9
    assert host.pid not in {provenance(sweep)[number]["pid"] for number in again}


@pytest.mark.slow
def test_the_host_of_a_single_trial_is_killed_twice(
    one_at_a_time: Sweep, one_node: Node, unbroken: dict[int, TrialRecord]
) -> None:
    sweep = one_at_a_time()
    sweep.tree["resources"]["engine_options"]["step_seconds"] = 0.03
    driver = sweep.launch()
    for _ in range(2):
        wait_for(driver.reported)
        one_node.workers(HOST)[0].kill()
        sweep.died("host, kill -9")
        sweep.goes_on(driver)
    sweep.finish(driver)
    sweep.check_same(unbroken)


@pytest.mark.parametrize(("fault", "title"), [("host", HOST), ("proxy", PROXY)])
def test_what_is_stopped_is_ended_and_its_trials_go_on(
    two_at_a_time: Sweep, one_node: Node, fault: str, title: str
) -> None:
    sweep = two_at_a_time()
    with sweep.held():
        driver = sweep.launch(silent_seconds=12.0)
        wait_for(lambda: driver.reported(2))
        time.sleep(2.0)  # it has answered
        one_node.workers(title)[0].suspend()
        sweep.died(f"{fault}, kill -STOP")
    sweep.goes_on(driver)
    output = sweep.finish(driver)
    sweep.check_whole()
    assert ("has not answered for" if fault == "host" else "its proxy hangs") in output


def test_an_engine_that_hangs_is_a_death_of_its_host(two_at_a_time: Sweep) -> None:
    sweep = two_at_a_time(resources={"stall_seconds": 5.0})
    options = sweep.tree["resources"]["engine_options"]
    options |= {"faults": {1: "hang"}, "step_seconds": 0.04}  # trial 0 reports between two deaths
    driver = sweep.launch()
    output = driver.finish()
    assert "has made no step for" in output
    ended = {t.number: t.user_attrs.get("kind") for t in driver.trials()}
    assert ended == {0: None, 1: "lost", 2: None, 3: None}, "alone in the end, and lost"


def test_a_trial_that_runs_for_too_long_is_stopped_also_if_its_proxy_is_late(
    two_at_a_time: Sweep,
) -> None:
    sweep = two_at_a_time(
        budget={"n_trials": 2, "max_samples": 10**6, "num_rungs": 0, "trial_timeout": 0.5}
    )
    driver = sweep.launch()  # no proxy is up after half a second
    output = driver.finish()
    assert "status: failed" in output, "nothing completed"
    for trial in driver.trials():
        assert trial.user_attrs["kind"] == "timeout"
        assert "budget.trial_timeout = 0.5 s" in trial.user_attrs["result"]["error"]


@pytest.mark.slow
def test_a_proxy_that_comes_back_on_another_gpu_frees_its_old_slot(
    two_at_a_time: Sweep, tmp_path: Any
) -> None:
    (tmp_path / "gpus").mkdir()
    with ray_node(tmp_path / "gpus", "--num-cpus=2", "--num-gpus=2") as gpus:
        resources = {
            "gpus_per_trial": 1,
            "max_concurrent": 1,
            "engine_options": {"num_slots": 1, "step_seconds": 0.04},
        }
        sweep = two_at_a_time(address=gpus.address, resources=resources)
        driver = sweep.launch()
        for number in range(4):  # with a free GPU each time, so that some come back elsewhere
            wait_for(lambda n=number: len(driver.trials()) > n and driver.reported())
            gpus.workers(PROXY)[0].kill()
            sweep.died("proxy, kill -9")
            sweep.goes_on(driver)
        sweep.finish(driver)
        sweep.check_whole()


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["death", "device"])
def test_a_trial_under_which_hosts_die_runs_alone_and_only_then_is_lost(
    two_at_a_time: Sweep, fault: str
) -> None:
    options = {"num_slots": 2, "step_seconds": 0.04, "faults": {"1": fault}}
    sweep = two_at_a_time(resources={"engine_options": options})
    driver = sweep.launch()
    output = sweep.finish(driver)
    found = sweep.read()
    assert [found[n].state for n in range(4)] == ["COMPLETE", "FAIL", *["COMPLETE"] * 2], output
    lost = found[1].attributes
    assert lost["kind"] == "lost"
    assert "4 hosts died with this trial aboard" in lost["result"]["error"]
    assert driver.trials()[1].user_attrs["attempt"] == 4
    sweep.check_whole()


@pytest.mark.slow
@pytest.mark.parametrize("failures", [1, 3])
def test_a_host_that_cannot_be_started_again_is_made_anew_or_ends_the_driver(
    one_at_a_time: Sweep, unbroken: dict[int, TrialRecord], failures: int
) -> None:
    sweep = one_at_a_time(address=None)
    sweep.tree["resources"]["engine_options"]["step_seconds"] = 0.05
    sweep.next_marker.touch()  # lets the first host start
    driver = sweep.launch("host.starting", action="full_disk", flush_seconds=1)
    wait_for(driver.reported)
    sweep.died(f"host, kill -9, and it fails {failures} times to start")
    for number in range(failures):
        sweep.marker.unlink()
        if number == 0:
            titled(driver.look(), HOST)[0].kill()
        wait_for(sweep.marker.exists)
    if failures < 3:
        sweep.goes_on(driver)
        sweep.finish(driver)
    else:
        assert "cannot be started" in driver.finish(30)
        assert driver.process.returncode == 1
        sweep.complete()
    sweep.check_same(unbroken)
