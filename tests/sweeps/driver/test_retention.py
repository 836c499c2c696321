"""What stays on disk while trials run, when they have ended, and what `keep` leaves."""

from collections.abc import Callable
from pathlib import Path

import pytest

from sweeps import SweepSpec
from sweeps.driver.retention import Retention
from sweeps.records.layout import SweepFolder

Sweep = Callable[..., SweepSpec]


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    return SweepFolder(tmp_path, "waves")


def leave(folder: SweepFolder, attempt: int, step: int) -> str:
    path = folder.attempt(7, attempt) / "checkpoints" / f"step-{step:08d}"
    path.mkdir(parents=True)
    (path / "state.json").write_text("{}")
    return str(path)


def steps(folder: SweepFolder) -> list[tuple[str, str]]:
    return [(path.parts[-3], path.name[-2:]) for path in folder.checkpoints(7)]


def test_the_latest_two_and_the_best_stay(folder: SweepFolder) -> None:
    retention = Retention(folder)
    for step, loss in ((10, 3.0), (20, 1.0), (30, None), (40, 2.0), (50, None), (60, 1.5)):
        retention.checkpoint_left(7, leave(folder, 1, step), loss)
    assert steps(folder) == [("1", "20"), ("1", "50"), ("1", "60")]
    retention.checkpoint_left(7, leave(folder, 2, 70), 0.5)
    assert steps(folder) == [("1", "60"), ("2", "70")]


def test_a_later_attempt_that_began_again_earlier_keeps_its_own(folder: SweepFolder) -> None:
    retention = Retention(folder)
    for step in (10, 20, 30):
        retention.checkpoint_left(7, leave(folder, 1, step), None)
    retention.checkpoint_left(7, leave(folder, 2, 20), None)
    assert ("2", "20") in steps(folder)


def test_a_checkpoint_that_was_never_heard_of_is_no_spare_one(folder: SweepFolder) -> None:
    retention = Retention(folder)
    retention.checkpoint_left(7, leave(folder, 1, 90), None)
    leave(folder, 1, 99)  # and its host died
    for step in (92, 94, 96):
        retention.checkpoint_left(7, leave(folder, 2, step), None)
    assert steps(folder) == [("2", "94"), ("2", "96")]


def test_one_that_will_be_heard_of_stays(folder: SweepFolder) -> None:
    retention = Retention(folder)
    paths = [leave(folder, 1, step) for step in (10, 20, 30, 40)]  # all written, then heard of
    retention.checkpoint_left(7, paths[0], None)
    assert steps(folder) == [("1", "10"), ("1", "20"), ("1", "30"), ("1", "40")]
    retention.checkpoint_left(7, paths[2], None)
    assert steps(folder) == [("1", "20"), ("1", "30"), ("1", "40")]


def test_nothing_is_left_of_a_trial_that_has_ended(folder: SweepFolder) -> None:
    retention = Retention(folder)
    retention.checkpoint_left(7, leave(folder, 1, 10), 1.0)
    torn = folder.attempt(7, 1) / "checkpoints" / ".step-00000020.x"
    torn.mkdir()
    log = folder.attempt(7, 1) / "log.txt"
    log.write_text("kept")
    retention.trial_ended(7)
    assert not list(folder.trial(7).rglob("checkpoints"))
    assert log.exists()


@pytest.mark.parametrize("path", ["../other", "../../etc", "trials/../../other", "/etc"])
def test_nothing_is_removed_outside_of_the_sweep_s_folder(folder: SweepFolder, path: str) -> None:
    other = folder.storage / "other"
    other.mkdir()
    with pytest.raises(ValueError, match="is not in the folder of the sweep 'waves'"):
        folder.remove(folder.path / path)
    assert other.is_dir()
