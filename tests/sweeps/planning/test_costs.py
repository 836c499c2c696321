"""What a sweep costs, by hand."""

import pytest

from sweeps.planning.costs import TrialSeconds, costs
from sweeps.search.survival import Range, Survival

WHOLE = Survival(Range(1, 1, 1), Range(1, 1, 1), Range(3, 3, 3))
HALF = Survival(Range(0.1, 0.2, 0.3), Range(0.4, 0.5, 0.6), Range(1.2, 1.5, 1.8))


def test_without_pruning_on_one_gpu() -> None:
    found = costs(10, TrialSeconds(300.0, 20.0), WHOLE, num_gpus=1, starting_seconds=60.0)
    hours = (10 * (300 + 3 * 20) + 60) / 3600
    for told in (found.gpu_hours, found.hours):
        assert (told.low, told.expected, told.high) == pytest.approx((hours, hours, hours))
    assert found.usd is None


def test_a_pruner_and_an_uncertain_speed_widen_the_range() -> None:
    found = costs(10, TrialSeconds(300.0, 20.0), HALF, num_gpus=1, spread=1.5)
    low, high = 10 * (120 + 24) / 1.5 / 3600, 10 * (180 + 36) * 1.5 / 3600
    assert (found.gpu_hours.low, found.gpu_hours.high) == pytest.approx((low, high))
    assert found.gpu_hours.expected == pytest.approx(10 * (150 + 30) / 3600)


def test_on_several_gpus_the_last_trial_may_run_alone_and_idle_gpus_are_paid() -> None:
    found = costs(
        40, TrialSeconds(900.0, 0.0), WHOLE, num_gpus=4, starting_seconds=36.0, usd_per_gpu_hour=2.0
    )
    assert found.gpu_hours.expected == pytest.approx(40 * 0.25 + 4 * 0.01)
    assert found.hours.low == pytest.approx(10.04 / 4)
    assert found.hours.high == pytest.approx(10.04 / 4 + 0.25 * 3 / 4)
    assert found.usd is not None
    assert found.usd.high == pytest.approx(4 * 2.0 * found.hours.high)
