"""What is found under a sweep's name is used only if it is the sweep's; else nothing is written."""

import contextlib
import hashlib
import json
import shutil
import sqlite3
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest

from peft_jobs import SpecError
from sweeps import SweepSpec, open_sweep
from sweeps.results.leaderboard import Leaderboard
from sweeps.run import launch
from sweeps.sqlite_urls import sqlite_url

Sweep = Callable[..., SweepSpec]
EARLIER = Path(__file__).parents[1] / "cli" / "earlier" / "storage-0.1.tar.gz"


@pytest.fixture
def few(sweep: Sweep, tmp_path: Path) -> Sweep:
    """Three trials in the storage `runs`, with the study in `team.db` for `shared=True`."""

    def build(storage: str = "runs", shared: bool = False, **sections: Any) -> SweepSpec:
        url = {"study_url": sqlite_url(tmp_path / "team.db")} if shared else {}
        budget = {"n_trials": sections.pop("n_trials", 3)}
        return sweep(budget=budget, storage=str(tmp_path / storage), **url, **sections)

    return build


def state_of(folder: Path) -> dict[str, str]:
    """Every file's content; a database's whether its rows stand in the file or still in the log."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(content_of(path)).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.endswith(("-shm", "-wal"))
    }


def content_of(path: Path) -> bytes:
    if path.suffix != ".db":
        return path.read_bytes()
    with contextlib.closing(sqlite3.connect(path)) as database:
        return "\n".join(database.iterdump()).encode()


def refused(spec: SweepSpec, folder: Path, moved: bool = False) -> str:
    """Why a launch is refused, which changes no file."""
    before = state_of(folder)
    with pytest.raises(SpecError) as error:
        launch(spec, moved=moved)
    assert state_of(folder) == before
    return str(error.value)


def rows(board: Leaderboard) -> int:
    return len(board.rows)


@pytest.mark.parametrize("directions", [["minimize"], ["maximize"], ["minimize", "maximize"]])
def test_a_study_that_no_sweep_has_made_is_refused(
    few: Sweep, tmp_path: Path, directions: list[str]
) -> None:
    spec = few(shared=True)
    study = optuna.create_study(study_name=spec.name, storage=spec.study_url, directions=directions)
    told = refused(spec, tmp_path)
    assert f"is none of this sweep's (direction{'s' * (len(directions) > 1)} " in told
    assert f"{', '.join(directions)}, 0 trials)" in told
    assert study.user_attrs == {}


def test_a_study_with_trials_of_somebody_s_own_is_refused(few: Sweep, tmp_path: Path) -> None:
    spec = few(shared=True)
    study = optuna.create_study(study_name=spec.name, storage=spec.study_url)
    study.ask().suggest_categorical("adapter.r", [1, 2])  # a worker is busy with it
    assert "1 trial)" in refused(spec, tmp_path)


@pytest.mark.parametrize("told", [False, True], ids=["running", "complete"])
def test_trials_that_somebody_adds_to_a_sweep_s_study_are_none_of_its_own(
    few: Sweep, tmp_path: Path, told: bool
) -> None:
    spec = few()
    before = launch(spec).leaderboard
    study = optuna.load_study(study_name=spec.name, storage=f"sqlite:///{spec.storage}/optuna.db")
    trial = study.ask()
    trial.suggest_float("x", 0, 1)
    if told:
        study.tell(trial, -1.0)
        assert open_sweep(spec.storage, spec.name).leaderboard() == before
    assert f"trials that this sweep has not asked for ({trial.number})" in refused(spec, tmp_path)


def test_a_point_that_somebody_enqueues_is_run(few: Sweep) -> None:
    spec = few()
    launch(spec)
    study = optuna.load_study(study_name=spec.name, storage=f"sqlite:///{spec.storage}/optuna.db")
    study.enqueue_trial({"adapter.r": 16, "training.learning_rate": 0.005})
    board = launch(few(n_trials=4)).leaderboard
    assert {row.number: row for row in board.rows}[3].params["training.learning_rate"] == 0.005


def test_one_study_is_not_driven_from_two_storages(few: Sweep, tmp_path: Path) -> None:
    launch(few("alice", shared=True))
    told = refused(few("bob", shared=True), tmp_path)
    assert f"keeps its files in {tmp_path / 'alice'} (last driven on " in told
    assert f"`peft-sweep resume simulated --storage {tmp_path / 'alice'}`" in told
    assert not (tmp_path / "bob").exists()
    assert rows(launch(few("alice", shared=True, n_trials=4)).leaderboard) == 4


def test_a_folder_of_another_sweep_is_not_used(few: Sweep, tmp_path: Path) -> None:
    launch(few("alice", shared=True))
    launch(few("bob"))
    told = refused(few("bob", shared=True), tmp_path)
    assert "is the folder of another sweep (simulated-" in told
    record = tmp_path / "bob" / "simulated" / "sweep.json"
    changed = json.loads(record.read_text())
    changed["sweep"]["study_url"] = sqlite_url(tmp_path / "team.db")
    record.write_text(json.dumps(changed))
    with pytest.raises(SpecError, match="is not that of the sweep in"):
        open_sweep(tmp_path / "bob", "simulated")


@pytest.mark.parametrize("shared", [False, True])
def test_a_removed_folder_is_not_made_anew(few: Sweep, tmp_path: Path, shared: bool) -> None:
    launch(few(shared=shared))
    shutil.rmtree(tmp_path / "runs" / "simulated")
    told = refused(few(shared=shared), tmp_path)
    assert f"{tmp_path / 'runs' / 'simulated'} was removed" in told
    assert f"`peft-sweep delete simulated --storage {tmp_path / 'runs'}`" in told


def test_a_folder_that_is_no_sweep_s_is_not_used(few: Sweep, tmp_path: Path) -> None:
    mine = tmp_path / "runs" / "simulated"
    mine.mkdir(parents=True)
    (mine / "thesis.tex").write_text("mine")
    assert "is no sweep's folder, it holds thesis.tex" in refused(few(), tmp_path)


def test_what_a_launch_that_came_to_nothing_has_left_is_taken_up(
    few: Sweep, tmp_path: Path
) -> None:
    folder = tmp_path / "runs" / "simulated"
    (folder / "inputs").mkdir(parents=True)
    (folder / ".driver").write_text("0.1")
    (folder / "sweep.id").write_text("simulated-abc")
    assert rows(launch(few()).leaderboard) == 3
    study = optuna.load_study(
        study_name="simulated", storage=f"sqlite:///{folder.parent}/optuna.db"
    )
    assert study.user_attrs["key"] == "simulated-abc"


def test_a_driver_that_died_before_it_marked_its_study_has_a_successor(
    few: Sweep, tmp_path: Path
) -> None:
    spec = few(shared=True)
    folder = tmp_path / "runs" / "simulated"
    folder.mkdir(parents=True)
    (folder / "sweep.id").write_text("simulated-abc")
    optuna.create_study(study_name=spec.name, storage=spec.study_url)
    assert rows(launch(spec).leaderboard) == 3


def test_a_storage_with_its_own_study_may_be_moved_and_copied(few: Sweep, tmp_path: Path) -> None:
    launch(few())
    shutil.copytree(tmp_path / "runs", tmp_path / "copy")
    shutil.move(tmp_path / "runs", tmp_path / "moved")
    for storage in ("copy", "moved"):
        assert rows(launch(few(storage, n_trials=4)).leaderboard) == 4


def test_a_storage_whose_study_is_elsewhere_says_that_it_has_moved(
    few: Sweep, tmp_path: Path
) -> None:
    launch(few(shared=True))
    shutil.move(tmp_path / "runs", tmp_path / "moved")
    spec = few("moved", shared=True, n_trials=4)
    assert "if it has moved, say --moved" in refused(spec, tmp_path)
    assert rows(launch(spec, moved=True).leaderboard) == 4
    assert rows(launch(few("moved", shared=True, n_trials=5)).leaderboard) == 5  # said once


def test_a_copy_is_told_from_the_original(few: Sweep, tmp_path: Path) -> None:
    launch(few(shared=True))
    shutil.copytree(tmp_path / "runs", tmp_path / "copy")
    copy = few("copy", shared=True, n_trials=4)
    assert f"is a copy of the folder in {tmp_path / 'runs'}" in refused(copy, tmp_path)
    assert rows(launch(copy, moved=True).leaderboard) == 4
    original = few(shared=True, n_trials=5)
    assert f"is a copy of the folder in {tmp_path / 'copy'}" in refused(original, tmp_path)


def test_a_link_to_a_storage_is_the_storage(few: Sweep, tmp_path: Path) -> None:
    launch(few(shared=True))
    (tmp_path / "link").symlink_to(tmp_path / "runs")
    assert rows(launch(few("link", shared=True, n_trials=4)).leaderboard) == 4


def test_a_sweep_of_an_earlier_version_gets_its_mark_when_it_is_taken_up(
    few: Sweep, tmp_path: Path
) -> None:
    launch(few(shared=True))
    study = optuna.load_study(study_name="simulated", storage=sqlite_url(tmp_path / "team.db"))
    key = study.user_attrs["key"]
    forget_home(tmp_path / "team.db")
    mark = tmp_path / "runs" / "simulated" / "sweep.id"
    mark.unlink()
    assert rows(open_sweep(tmp_path / "runs", "simulated").leaderboard()) == 3
    assert rows(launch(few(shared=True, n_trials=4)).leaderboard) == 4
    assert mark.read_text() == key


def forget_home(database: Path) -> None:
    """Make a study one of version 0.1."""
    with sqlite3.connect(database) as connection:
        connection.execute("DELETE FROM study_user_attributes WHERE key = 'home'")
    connection.close()


def test_the_storage_that_version_0_1_left_has_the_study_s_half_only(tmp_path: Path) -> None:
    with tarfile.open(EARLIER) as archive:
        archive.extractall(tmp_path, filter="data")
    assert not (tmp_path / "recorded" / "sweep.id").exists()
    sweep = open_sweep(tmp_path, "recorded")
    assert sweep.study.optuna.user_attrs.keys() >= {"key", "spec"}
    assert "home" not in sweep.study.optuna.user_attrs
