"""The files of a trial: `trial.json` when it starts, its adapter and `result.json` when it ends."""

import json
import shutil
from pathlib import Path

from optuna.trial import FrozenTrial

from peft_jobs import TrialResult, TrialSpec, faults
from peft_jobs.storage.attempt_folder import ADAPTER_FOLDER, TRACEBACK_FILE
from peft_jobs.storage.files import write_json, write_whole
from sweeps.driver.tracked_runs import milliseconds, track_end, track_start, trial_artifacts
from sweeps.records.layout import SweepFolder
from sweeps.study.point import Point
from sweeps.study.reruns import REPEAT_OF, spec_of
from sweeps.tracking import Tracker


def record_start(folder: SweepFolder, point: Point) -> None:
    """Write `trial.json`: what the trial is, to be run again alone."""
    path = folder.trial_file(point.number)
    write_json(path, point.spec.model_dump(mode="json"))
    folder.keep(path)


def claim_adapter(
    folder: SweepFolder, number: int, attempt: int, result: TrialResult
) -> TrialResult:
    """Move a saved adapter from the attempt's folder to the trial's; the result that says so.

    In an object store it stays where it is, and where it cannot be moved. One that is not there is
    none.
    """
    if result.adapter is None:
        return result
    source = folder.attempt(number, attempt) / result.adapter
    if folder.in_store:  # there, moving is copying
        return result.model_copy(update={"adapter": str(source.relative_to(folder.path))})
    target = folder.trial(number) / ADAPTER_FOLDER
    shutil.rmtree(target, ignore_errors=True)  # of a driver that died before it told the end
    try:
        source.rename(target)
    except OSError as error:
        if source.is_dir():
            return result.model_copy(update={"adapter": str(source.relative_to(folder.path))})
        told = f"its adapter is not in {source}: {error.strerror}"
        return result.model_copy(update={"adapter": None, "error": told})
    return result.model_copy(update={"adapter": str(target.relative_to(folder.path))})


def record_end(
    folder: SweepFolder,
    tracker: Tracker,
    number: int,
    attempt: int,
    spec: TrialSpec,
    result: TrialResult,
    time_ms: int,
) -> None:
    """Write `result.json` and tell the tracker, once the study was told."""
    _write_result(folder, number, attempt, result)
    faults.passing("end.file")
    artifacts = list(trial_artifacts(folder, number, attempt, result))
    track_end(tracker, number, spec, result, artifacts, time_ms)


def record_missing(
    folder: SweepFolder,
    tracker: Tracker,
    trial: FrozenTrial,
    spec: TrialSpec,
    result: TrialResult,
    has_file: bool,
) -> None:
    """Record what an earlier driver did not of a trial that has ended; `spec` is the sweep's.

    A whole `result.json` stays: it has the traceback, which the study's copy lacks. The tracker is
    told from the start on. If it was only that driver's outbox that is gone, MLflow has all of it
    already, and perhaps the only copy of the adapter.
    """
    number, known = trial.number, trial.user_attrs
    attempt, params = int(known["attempt"]), known["params"]
    if not has_file or not _is_whole(folder, folder.result(number)):
        _write_result(folder, number, attempt, result)
    is_started, is_tracked = _is_whole(folder, folder.trial_file(number)), tracker.has_ended(number)
    if is_started and is_tracked:
        return
    again = {name: known.get(name) for name in ("retry_of", REPEAT_OF)}
    point = Point(number, attempt, params, spec_of(spec, known), **again)
    if not is_started:
        record_start(folder, point)
    if is_tracked:
        return
    track_start(tracker, point, milliseconds(trial.datetime_start))
    artifacts = list(trial_artifacts(folder, number, attempt, result, adapter_may_be_gone=True))
    ended = milliseconds(trial.datetime_complete)
    track_end(tracker, number, point.spec, result, artifacts, ended)


def _is_whole(folder: SweepFolder, path: Path) -> bool:
    """Whether a file of machines is there and can be read; an object store is not asked."""
    if folder.in_store:
        return True
    try:
        json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    return True


def _write_result(folder: SweepFolder, number: int, attempt: int, result: TrialResult) -> None:
    if result.traceback:
        traceback = folder.attempt(number, attempt) / TRACEBACK_FILE
        write_whole(traceback, result.traceback)
        folder.keep(traceback)
    write_json(folder.result(number), result.model_dump(mode="json"))
    folder.keep(folder.result(number))
