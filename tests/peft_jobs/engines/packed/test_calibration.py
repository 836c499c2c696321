"""The number of slots that share a step."""

import random
from collections.abc import Callable

import pytest

from peft_jobs.engines.packed.calibration import Calibration, groups


def settle(
    calibration: Calibration,
    cost: Callable[[int], float],
    num_slots: int,
    load: Callable[[int], float] = lambda number: 1.0,
) -> list[int]:
    """The widths of 100 rounds where a step of `width` slots takes `cost(width)`, times the load
    of the machine in that round."""
    chosen = []
    for number in range(100):
        width = calibration.width("work", num_slots)
        seconds = sum(cost(len(group)) for group in groups(range(num_slots), width))
        calibration.saw("work", width, seconds * load(number), 100 * num_slots)
        chosen.append(width)
    return chosen


def busy(number: int) -> float:
    """Others come for a while, and every round has its own noise."""
    source = random.Random(number)
    return (3.0 if 4 <= number < 11 else 1.0) * (1 + abs(source.gauss(0, 0.05)))


@pytest.mark.parametrize(
    ("cost", "best"),
    [
        (lambda width: 1 + 0.01 * width, 8),  # launches and dequantisation
        (lambda width: 0.02 + width**1.5, 1),  # nothing is shared, and caches overflow
        (lambda width: 1 + 0.2 * width + 5 * max(0, width - 4), 4),
    ],
)
@pytest.mark.parametrize("load", [lambda number: 1.0, busy])
def test_the_width_with_the_cheapest_tokens_is_found(
    cost: Callable[[int], float], best: int, load: Callable[[int], float]
) -> None:
    calibration = Calibration()
    chosen = settle(calibration, cost, 8, load)
    assert set(chosen[50:]) == {best}
    assert calibration.limit("work") == (None if best == 8 else best)
    if best == 8:
        assert set(chosen) == {8, 4}
        assert chosen.count(4) <= 8, "what is slow is not tried for long"


def test_a_slow_first_round_of_a_width_does_not_count() -> None:
    calibration, seen = Calibration(), set()
    for _ in range(30):
        width = calibration.width("work", 4)
        calibration.saw("work", width, 1.0 + 4 / width if width in seen else 100.0, 100)
        seen.add(width)
    assert seen == {4, 2}
    assert calibration.width("work", 4) == 4


def test_other_work_is_measured_anew_and_old_results_expire() -> None:
    calibration = Calibration()
    settle(calibration, lambda width: float(width**2), 4)
    assert calibration.limit("work") == 1
    assert calibration.width("work", 4) == 1
    assert calibration.width("other work", 4) == 4
    assert calibration.limit("other work") is None
    for _ in range(3):
        settle(calibration, lambda width: 1.0, 4)
    assert calibration.limit("work") is None
    assert calibration.width("work", 4) == 4


def test_more_slots_than_were_compared_are_compared() -> None:
    calibration = Calibration()
    assert set(settle(calibration, lambda width: 1 + float(width > 2) * width**2, 2)) == {1, 2}
    assert calibration.limit("work") is None
    settle(calibration, lambda width: 1 + float(width > 2) * width**2, 8)
    assert calibration.limit("work") == 2


def test_the_number_of_slots_may_change_at_any_time() -> None:
    calibration = Calibration()
    source = random.Random(1)
    for _ in range(200):
        number = source.randint(1, 8)
        width = calibration.width("work", number)
        assert 1 <= width <= number
        steps = groups(range(number), width)
        calibration.saw("work", width, sum(1 + 0.01 * len(g) for g in steps), 100 * number)
    assert [calibration.width("work", number) for number in range(1, 9)] == list(range(1, 9))


def test_groups_hold_everything_once_in_even_sizes() -> None:
    for number in range(1, 20):
        for width in range(1, number + 1):
            found = groups(range(number), width)
            assert [item for group in found for item in group] == list(range(number))
            sizes = {len(group) for group in found}
            assert max(sizes) <= width
            assert max(sizes) - min(sizes) <= 1
