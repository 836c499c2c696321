"""What is left of a sweep: by hand, and as a range that narrows around what was left."""

from collections.abc import Callable

import pytest

from sweeps import SweepSpec
from sweeps.cli.display.work_left import PRIOR_TRIALS, WorkLeft
from sweeps.cli.screen import between
from sweeps.driver.driver import Driver
from sweeps.run import LaunchCallbacks, launch

Sweep = Callable[..., SweepSpec]


def resolved(spec: SweepSpec, rungs: list[int]) -> SweepSpec:
    trial = spec.trial.with_params({"training.max_samples": 900, "evaluation.rungs": rungs})
    return spec.model_copy(update={"trial": trial})


def test_without_rungs_every_trial_runs_to_its_end(sweep: Sweep) -> None:
    work = WorkLeft(resolved(sweep(pruner="none"), []))
    low, high = work.left(3, [0.25, 0.5])
    assert low == high == 3 + 0.75 + 0.5
    work.end(1.0)
    assert work.done([0.25]) == 1.25


def test_ended_trials_weigh_against_what_was_expected(sweep: Sweep) -> None:
    work = WorkLeft(resolved(sweep(), [90, 300]))
    low, high = work.left(10, [])
    assert 1.0 < low < high < 10.0
    for _ in range(8):
        work.end(0.1)
    assert PRIOR_TRIALS == 8
    assert work.left(10, []) == pytest.approx(((low + 1.0) / 2, (high + 1.0) / 2))
    at_a_third = work.left(0, [1 / 3])
    assert at_a_third == pytest.approx((1 - 1 / 3, 1 - 1 / 3)), "past the last rung it ends"
    assert work.left(0, [0.2]) == pytest.approx((1 / 3 - 0.2, 1 - 0.2)), "to the next one at least"


def test_the_range_narrows_around_what_is_left(sweep: Sweep) -> None:
    """Of a simulated sweep, at its beginning, its middle and near its end."""
    budget = {"n_trials": 60, "max_samples": 900, "rungs": [100, 300]}
    seen: list[tuple[float, tuple[float, float]]] = []
    left: list[WorkLeft] = []
    counted: set[int] = set()

    def on_change(driver: Driver) -> None:
        work = left[0] if left else WorkLeft(driver.spec)
        left[:] = [work]
        for number in driver.ended.keys() - counted:
            counted.add(number)
            work.end(work.share(driver.ended[number].samples))
        current = [
            0.0 if trial.progress is None else work.share(trial.progress.samples)
            for trial in driver.running.values()
        ]
        waiting = 60 - len(counted) - len(current)
        seen.append((work.done(current), work.left(waiting, current)))

    resources = {"engine_options": {"num_slots": 4}, "slots_per_gpu": 4}
    launch(
        sweep(budget=budget, resources=resources, sampler="random"),
        callbacks=LaunchCallbacks(on_change=on_change),
    )
    total = seen[-1][0]
    widths = []
    for at in (0.1, 0.5, 0.9):
        done, (low, high) = next(moment for moment in seen if moment[0] >= at * total)
        assert 0.6 * low <= total - done <= 1.5 * high
        widths.append(high - low)
    assert widths[0] > widths[1] > widths[2]
    assert seen[-1][1] == (0.0, 0.0)


def test_a_range_is_one_time_where_both_ends_say_the_same() -> None:
    assert between(725, 1150) == "12:05 to 19:10"
    assert between(700, 725) == "about 12:05"
    assert between(1, 3) == "about 0:03"
