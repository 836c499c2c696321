"""What Ray raises when it starts."""

import pytest

from sweeps.backends.ray.connection import NODE_STARTS, start_ray


class Slow:
    """Ray whose node is too slow to start, so many times."""

    def __init__(self, times: int, kind: type[Exception] = Exception) -> None:
        self.times, self.kind, self.tries = times, kind, 0

    def __call__(self) -> None:
        self.tries += 1
        if self.tries <= self.times:
            raise self.kind("The current node timed out during startup.")


def test_a_node_that_was_too_slow_to_start_is_started_again() -> None:
    ray = Slow(NODE_STARTS - 1)
    start_ray(ray)
    assert ray.tries == NODE_STARTS


def test_what_stays_too_slow_is_raised() -> None:
    ray = Slow(99)
    with pytest.raises(Exception, match="timed out during startup"):
        start_ray(ray)
    assert ray.tries == NODE_STARTS


def test_other_errors_are_raised_at_once() -> None:
    ray = Slow(1, ValueError)
    with pytest.raises(ValueError, match="timed out"):
        start_ray(ray)
    assert ray.tries == 1
