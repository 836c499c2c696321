"""The order of the tests: those that take long begin, so that no process is left alone with one.

pytest-xdist gives each process a stretch of the order, and who has done its own takes from the end
of another's.
"""

import pytest

from tests.support.repository import REPOSITORY

FIRST = (
    "tests/chaos",  # before all: what its tests share is made once if one process runs them
    "tests/sweeps/test_real_input.py",
    "tests/test_readme.py",
    "tests/infra/test_wheel.py",
    "tests/sweeps/test_secrets.py",
    "tests/sweeps/backends/ray/test_placement.py",
)
"""Folders and modules whose tests take tens of seconds each."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    first = [REPOSITORY / name for name in FIRST]
    assert [path for path in first if not path.exists()] == []

    def turn(item: pytest.Item) -> int:
        own = (item.path, *item.path.parents)
        return next((n for n, path in enumerate(first) if path in own), len(first))

    items.sort(key=turn)
