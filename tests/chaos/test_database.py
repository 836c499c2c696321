"""The study's database is locked by somebody else while the driver wants to write to it."""

import sqlite3
import time
from collections.abc import Callable
from contextlib import closing

import pytest

from tests.support.breaking import Broken
from tests.support.left_behind import TrialRecord
from tests.support.ray_nodes import wait_for

Sweep = Callable[..., Broken]


@pytest.mark.parametrize(
    ("point", "seconds"),
    [
        ("report.reported", 3),
        pytest.param("ask.asked", 30, marks=pytest.mark.slow),
        pytest.param("report.reported", 30, marks=pytest.mark.slow),
        pytest.param("tell.result", 30, marks=pytest.mark.slow),
    ],
)
def test_a_sweep_waits_for_a_locked_database(
    one_at_a_time: Sweep, unbroken: dict[int, TrialRecord], point: str, seconds: float
) -> None:
    sweep = one_at_a_time()
    driver = sweep.launch(point, nth=2, action="pause")
    wait_for(sweep.marker.exists)
    with closing(sqlite3.connect(sweep.storage / "optuna.db", timeout=20)) as database:
        database.isolation_level = None
        database.execute("BEGIN EXCLUSIVE")
        sweep.marker.write_text("go on")
        time.sleep(seconds)
        database.execute("ROLLBACK")
    sweep.died(f"study's database locked for {seconds} s at {point}")
    sweep.goes_on(driver)
    sweep.finish(driver)
    sweep.check_same(unbroken)
