"""A disk that takes nothing for a while, under the driver's own files."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from peft_jobs import State, TrialResult
from sweeps import SweepSpec
from sweeps.driver.driver import Driver
from sweeps.driver.late_files import AGAIN_SECONDS, LateFiles
from sweeps.driver.trial_record import claim_adapter
from sweeps.records.layout import SweepFolder
from sweeps.run import LaunchCallbacks, launch

Sweep = Callable[..., SweepSpec]


class Disk:
    """A full one, until it is emptied."""

    def __init__(self) -> None:
        self.is_full, self.written, self.tries = True, [], 0

    def take(self, name: str) -> None:
        self.tries += 1
        if self.is_full:
            raise OSError(28, "No space left on device")
        self.written.append(name)


def test_what_cannot_be_written_is_written_later_in_order() -> None:
    now, disk = [0.0], Disk()
    files = LateFiles(clock=lambda: now[0])
    for name in ("spec", "result"):
        files.write("trial 1", lambda name=name: disk.take(name))  # type: ignore[misc]
    files.write("trial 2", lambda: disk.take("other"))
    files.again()
    tries = disk.tries
    files.again()
    assert disk.tries == tries, "not in every round of the loop"
    now[0] += AGAIN_SECONDS
    files.again()
    assert disk.tries > tries
    assert files.finish() == ["trial 1", "trial 2"]
    disk.is_full = False
    assert files.finish() == []
    assert disk.written == ["spec", "result", "other"]


def test_what_is_no_matter_of_the_disk_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        LateFiles().write("it", lambda: 1 / 0)


@pytest.mark.parametrize("comes_back", [True, False])
def test_a_sweep_goes_on_while_a_trials_folder_takes_nothing(
    sweep: Sweep, tmp_path: Path, caplog: pytest.LogCaptureFixture, comes_back: bool
) -> None:
    spec = sweep(pruner="none", budget={"n_trials": 6})
    folder = SweepFolder.of(spec)

    def spoil(*_: object) -> None:
        folder.trials.mkdir(exist_ok=True)
        folder.trial(3).write_text("no folder")  # every write into it fails

    def mend(driver: Driver) -> None:
        if comes_back and len(driver.ended) == 5:
            folder.trial(3).unlink(missing_ok=True)

    outcome = launch(spec, callbacks=LaunchCallbacks(on_prepared=spoil, on_change=mend))
    assert outcome.status == "complete"
    assert len(outcome.leaderboard.rows) == 6
    if not comes_back:
        assert "not written: the record of trial 3; the next launch writes them" in caplog.text
        folder.trial(3).unlink()
        launch(spec)
    assert json.loads(folder.result(3).read_text())["state"] == "COMPLETE"
    assert json.loads(folder.trial_file(3).read_text())["seed"] == 1


@pytest.mark.parametrize("damage", ["", '{"state": "COMP'])
def test_a_damaged_record_is_written_anew(sweep: Sweep, damage: str) -> None:
    spec = sweep(budget={"n_trials": 2})
    launch(spec)
    folder = SweepFolder.of(spec)
    whole = {path: path.read_text() for path in (folder.result(1), folder.trial_file(1))}
    for path in whole:
        path.write_text(damage)
    launch(spec)
    assert {path: path.read_text() for path in whole} == whole


def test_an_adapter_that_is_not_there_is_none(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path, "sweep")
    told = TrialResult(state=State.COMPLETE, metrics={"validation/loss": 1.0}, adapter="adapter")
    claimed = claim_adapter(folder, 0, 1, told)
    assert claimed.adapter is None
    assert "its adapter is not in" in str(claimed.error)
