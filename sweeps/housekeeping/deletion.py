"""Deletes a sweep: runs, study, folder, in this order, so that what was cut off can be taken up."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import optuna

from peft_jobs import SpecError
from peft_jobs.storage import object_store
from peft_jobs.storage.attempt_folder import RESULT_FILE, TRIAL_FILE
from peft_jobs.storage.files import follow_umask, whole_folder
from sweeps.errors import Unavailable
from sweeps.housekeeping.remains import Remains, size_of
from sweeps.records.layout import SweepFolder
from sweeps.results.recorded_sweep import open_sweep


@dataclass(frozen=True)
class Deleted:
    """What was deleted."""

    trials: int
    runs: int
    bytes: int
    kept: Path | None
    """Where the winner's adapter lies now."""


def delete_sweep(remains: Remains, keep_best: bool = False, keep_runs: bool = False) -> Deleted:
    """Delete a sweep, whatever is left of it; its runs are left with `keep_runs`.

    `keep_best` first copies the winner's adapter, with its trial.json and result.json, to
    `<storage>/<name>-best`. Raises SpecError if the sweep is being driven or has no winner to keep,
    and Unavailable if MLflow or a store does not answer: then the rest is still there.
    """
    folder = remains.folder
    with remains.held() as storage:
        kept = _keep_best(remains) if keep_best else None
        runs = 0 if keep_runs or remains.runs is None else _delete_runs(remains)
        if storage is not None:
            optuna.delete_study(study_name=folder.name, storage=storage)
        size = size_of(folder)
        _delete_folder(folder)
    return Deleted(remains.num_trials or 0, runs, size, kept)


def _delete_runs(remains: Remains) -> int:
    assert remains.runs is not None
    if "***@" in remains.runs.tracking_uri:
        raise SpecError(
            f"the runs of {remains.folder.name!r} are at {remains.runs}, whose credentials are not "
            "recorded: say --keep-runs, and delete them in MLflow"
        )
    from sweeps.tracking.recorded_runs import delete_runs  # imports mlflow

    try:
        return delete_runs(remains.runs)
    except Exception as error:  # of MLflow, requests, a database's driver, an object store
        raise Unavailable(
            f"the runs at {remains.runs} could not be deleted, the rest was not tried; --keep-runs "
            f"leaves them: {error}"
        ) from error


def _keep_best(remains: Remains) -> Path:
    folder = remains.folder
    best = open_sweep(folder.location, folder.name, remains.study_url).leaderboard().chosen
    if best is None or best.adapter is None:
        raise SpecError(f"the sweep {folder.name!r} has no winner whose adapter could be kept")
    root = Path() if folder.in_store else folder.storage
    target = root / f"{folder.name}-best"
    if target.exists():
        raise SpecError(f"{target} is there already: move it away first")
    with whole_folder(target) as begun:
        try:
            with object_store.local_copy(folder.path / best.adapter) as adapter:
                shutil.copytree(adapter, begun, dirs_exist_ok=True)
        except FileNotFoundError:
            raise SpecError(f"the adapter of trial {best.number} is gone") from None
        follow_umask(begun)
        for name in (TRIAL_FILE, RESULT_FILE):
            text = folder.read(folder.trial(best.number) / name)
            if text is not None:
                (begun / name).write_text(text, encoding="utf-8")
    return target


def _delete_folder(folder: SweepFolder) -> None:
    """The mark goes last: with it, what is left is still known to be the sweep's."""
    url = object_store.origin(folder.path)
    if url is not None:
        try:
            object_store.remove(url)
        except OSError as error:
            raise Unavailable(f"{url} could not be removed: {error}") from error
    if folder.path.is_symlink():
        raise SpecError(f"{folder.path} is a link: remove it, and what it leads to, by hand")
    if folder.path.is_dir():
        for path in folder.path.iterdir():
            if path != folder.id:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        shutil.rmtree(folder.path)
