"""Which seed of a final training is taken, and what is expected of another one."""

import pytest
from scipy import stats

from sweeps.results.final_training import FinalTraining


def test_the_median_seed_is_taken_and_the_mean_has_student_s_interval() -> None:
    values = {0: 1.4, 1: 1.1, 2: 1.25}
    found = FinalTraining("demo", 7, "validation/loss", "minimize", values)
    assert found.median == 2
    assert found.expected is not None
    low, high = stats.t.interval(0.95, 2, loc=1.25, scale=stats.sem(list(values.values())))
    assert (found.expected.value, found.expected.low, found.expected.high) == pytest.approx(
        (1.25, low, high)
    )
    first, second = found.words()
    assert first.startswith(
        "Trial 0007 of demo on all the data: validation/loss 1.2500 in the mean"
    )
    assert "trial 0002" in second


@pytest.mark.parametrize(("direction", "median"), [("minimize", 1), ("maximize", 2)])
def test_of_an_even_number_the_better_one_in_the_middle(direction: str, median: int) -> None:
    values = {0: 0.9, 1: 0.5, 2: 0.6, 3: 0.1}
    assert FinalTraining("demo", 7, "m", direction, values).median == median  # type: ignore[arg-type]


def test_one_seed_says_nothing_of_another() -> None:
    found = FinalTraining("demo", 7, "validation/loss", "minimize", {4: 1.0})
    assert (found.median, found.expected) == (4, None)
    assert found.words()[0].endswith("under one seed only.")
