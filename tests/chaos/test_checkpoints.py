"""A checkpoint is cut off, does not fit on the disk, or is damaged afterwards."""

import json
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.breaking import Broken
from tests.support.left_behind import TrialRecord

Sweep = Callable[..., Broken]


def resumed_from(sweep: Broken, number: int) -> int:
    """The step at which the last attempt of a trial began."""
    result = json.loads((sweep.folder / "trials" / f"{number:04d}" / "result.json").read_text())
    return int(result["provenance"]["resumed_from"])


def checkpoint_of(sweep: Broken, number: int) -> Path:
    """The last checkpoint that the study knows of a trial."""
    with closing(sqlite3.connect(sweep.storage / "optuna.db")) as database:
        query = (
            "SELECT value_json FROM trial_user_attributes JOIN trials USING (trial_id) "
            "WHERE number = ? AND key = 'checkpoint'"
        )
        return Path(json.loads(database.execute(query, (number,)).fetchone()[0]))


@pytest.mark.parametrize(
    ("point", "nth", "action"),
    [
        ("checkpoint.writing", 2, "kill"),
        ("checkpoint.writing", 1, "full_disk"),
        pytest.param("checkpoint.written", 2, "kill", marks=pytest.mark.slow),
        pytest.param("checkpoint.writing", 1, "kill", marks=pytest.mark.slow),
        pytest.param("checkpoint.writing", 3, "full_disk", marks=pytest.mark.slow),
    ],
)
def test_a_trial_survives_a_checkpoint_that_was_not_written(
    one_at_a_time: Sweep,
    unbroken: dict[int, TrialRecord],
    point: str,
    nth: int,
    action: str,
) -> None:
    sweep = one_at_a_time(address=None)  # its hosts inherit the planned fault from the driver
    driver = sweep.launch(point, nth, action)
    while not sweep.marker.exists():
        assert driver.process.poll() is None, driver.output.read_text()
        time.sleep(0.02)
    sweep.died(f"host, kill -9 at {point}" if action == "kill" else "disk full at a checkpoint")
    sweep.goes_on(driver)
    sweep.finish(driver)
    sweep.check_same(unbroken)


@pytest.mark.parametrize("damage", ["flipped", pytest.param("cut", marks=pytest.mark.slow)])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    one_at_a_time: Sweep, unbroken: dict[int, TrialRecord], damage: str
) -> None:
    sweep = one_at_a_time()
    sweep.die("report.decided", nth=2)
    latest = checkpoint_of(sweep, 0)
    assert latest.name == "step-00000025"
    state = bytearray((latest / "state.json").read_bytes())
    if damage == "flipped":
        state[len(state) // 2] ^= 0x10
    else:
        del state[len(state) // 2 :]
    (latest / "state.json").write_bytes(state)
    sweep.died(f"checkpoint {damage} while the driver was dead")
    sweep.complete()
    assert resumed_from(sweep, 0) == 9
    sweep.check_same(unbroken)
