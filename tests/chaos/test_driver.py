"""The driver dies: at every named point, at random moments, by signals."""

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable

import pytest

from tests.support.breaking import Broken
from tests.support.left_behind import TrialRecord
from tests.support.ray_nodes import wait_for

Sweep = Callable[..., Broken]
SEED = os.environ.get("PEFT_SWEEPS_CHAOS_SEED", "1")
POINTS = (
    "ask.asked",
    "ask.drawing",
    "ask.recorded",
    "report.reported",
    "report.decided",
    "tell.result",
    "tell.told",
    "end.file",
    "outbox.put",
    "outbox.delivered",
)


def test_a_driver_killed_at_each_named_point_in_turn_leaves_the_records_of_an_unbroken_run(
    one_at_a_time: Sweep, unbroken: dict[int, TrialRecord]
) -> None:
    sweep = one_at_a_time()
    for point in POINTS:
        sweep.die(point)
    sweep.complete()
    sweep.check_same(unbroken)


@pytest.mark.slow
@pytest.mark.parametrize("nth", [1, 2, 5])
@pytest.mark.parametrize("point", POINTS)
def test_a_driver_killed_at_one_point(
    one_at_a_time: Sweep, unbroken: dict[int, TrialRecord], point: str, nth: int
) -> None:
    sweep = one_at_a_time()
    sweep.die(point, nth)
    sweep.complete()
    sweep.check_same(unbroken)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_a_driver_killed_at_five_random_moments(
    one_at_a_time: Sweep, unbroken: dict[int, TrialRecord], part: int
) -> None:
    moments = random.Random(f"{SEED}/{part}")
    sweep = one_at_a_time()
    sweep.tree["resources"]["engine_options"]["step_seconds"] = 0.05
    for _ in range(5):
        driver = sweep.launch()
        dies = time.monotonic() + moments.uniform(1.0, 8.0)
        sweep.goes_on(driver)
        with contextlib.suppress(subprocess.TimeoutExpired):
            driver.process.wait(max(0.01, dies - time.monotonic()))
        driver.process.kill()
        driver.process.wait()
        sweep.died("driver, kill -9 at a random moment")
    sweep.complete()
    sweep.check_same(unbroken)


@pytest.mark.slow
def test_a_driver_killed_with_two_trials_aboard_loses_neither(two_at_a_time: Sweep) -> None:
    sweep = two_at_a_time()
    for count in (1, 2):
        with sweep.held():
            driver = sweep.launch()
            wait_for(lambda d=driver, c=count: d.reported(c))
            driver.process.kill()
            driver.process.wait()
        sweep.died("driver, kill -9 with two trials aboard")
    sweep.complete()
    sweep.check_whole()


@pytest.mark.slow
def test_a_killed_driver_with_a_cluster_of_its_own_leaves_no_process(
    one_at_a_time: Sweep, unbroken: dict[int, TrialRecord]
) -> None:
    sweep = one_at_a_time(address=None)
    sweep.tree["resources"]["engine_options"]["step_seconds"] = 0.02
    driver = sweep.launch()
    wait_for(driver.reported)
    driver.process.kill()
    driver.process.wait()
    sweep.died("driver, kill -9, its cluster dies with it")
    # Two agents of Ray's own (2.60) wait 60 s for the dead cluster before they leave as well.
    wait_for(lambda: not [name for name in driver.alive() if not name.endswith("Agent")], 10)
    sweep.complete()
    sweep.check_same(unbroken)


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_an_interrupted_sweep_leaves_checkpoints_and_no_process_and_goes_on_later(
    two_at_a_time: Sweep, number: signal.Signals
) -> None:
    sweep = two_at_a_time(address=None)
    sweep.tree["budget"]["n_trials"] = 2
    with sweep.held():
        driver = sweep.launch()
        wait_for(lambda: driver.reported(2))
        time.sleep(0.5)  # both are some steps beyond their last checkpoint
        if number == signal.SIGINT:  # as a terminal does: to the whole group
            os.killpg(driver.process.pid, number)
        else:
            driver.process.send_signal(number)
        output = driver.finish()
    assert "status: interrupted" in output
    assert "Traceback" not in output
    trials = driver.trials()
    assert [t.state.name for t in trials] == ["RUNNING"] * len(trials)
    assert all("interrupted_at" in t.user_attrs for t in trials)
    assert list(sweep.folder.rglob("result.json")) == []
    rungs = ("step-00000009", "step-00000025")
    last = [t.user_attrs["checkpoint"].rpartition("/")[2] for t in trials]
    assert not set(last) & set(rungs), "their last word is a checkpoint"
    wait_for(lambda: not driver.alive(), 45)
    sweep.died(f"driver, {number.name}")
    sweep.complete()
    sweep.check_whole()


def test_a_second_driver_is_refused_and_the_first_goes_on(
    one_at_a_time: Sweep, unbroken: dict[int, TrialRecord]
) -> None:
    sweep = one_at_a_time()
    first = sweep.launch("report.reported", nth=2, action="pause")
    wait_for(sweep.marker.exists)
    second = sweep.launch(supervised=True)
    said = second.finish()
    assert second.process.returncode == 2, said
    assert f"is being driven by process {first.process.pid}" in said
    sweep.marker.write_text("go on")
    sweep.note("second driver on the same sweep", 0.0)
    sweep.finish(first)
    sweep.check_same(unbroken)
