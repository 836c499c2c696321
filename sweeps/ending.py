"""A trial outside the study: its run in MLflow, and at its end its adapter and `result.json`."""

import shutil
import time
from collections.abc import Iterator
from datetime import datetime

from optuna.trial import FrozenTrial

from peft_jobs import State, TrialResult, TrialSpec, faults
from peft_jobs.dotted import flatten
from peft_jobs.files import write_json, write_whole
from sweeps.asking import Point
from sweeps.layout import SweepFolder, run_name
from sweeps.tracking import Artifact, RunStatus, Tracker

_RUN_STATUS: dict[State, RunStatus] = {
    State.COMPLETE: "FINISHED",
    State.PRUNED: "KILLED",
    State.FAIL: "FAILED",
}


def track_start(tracker: Tracker, point: Point, time_ms: int) -> None:
    """Tell the tracker that a trial starts, or goes on."""
    tags = {"trial.number": str(point.number), "trial.state": str(State.RUNNING)}
    if point.retry_of is not None:
        tags["trial.retry_of"] = str(point.retry_of)
    name = run_name(point.number, point.params)
    tracker.trial_started(point.number, name, flatten(point.spec), tags, time_ms)


def claim_adapter(
    folder: SweepFolder, number: int, attempt: int, result: TrialResult
) -> TrialResult:
    """Move a saved adapter from the attempt's folder to the trial's; the result that says so.

    In an object store it stays where it is.
    """
    if result.adapter is None:
        return result
    source = folder.attempt(number, attempt) / result.adapter
    if folder.in_store:  # there, moving is copying
        return result.model_copy(update={"adapter": str(source.relative_to(folder.path))})
    target = folder.trial(number) / "adapter"
    shutil.rmtree(target, ignore_errors=True)  # of a driver that died before it told the end
    source.rename(target)
    return result.model_copy(update={"adapter": str(target.relative_to(folder.path))})


def record_end(
    folder: SweepFolder, tracker: Tracker, number: int, attempt: int, result: TrialResult
) -> None:
    """Write `result.json` and tell the tracker, once the study was told."""
    _write_result(folder, number, attempt, result)
    faults.passing("end.file")
    artifacts = list(_artifacts(folder, number, attempt, result))
    _track_end(tracker, number, result, artifacts, now_ms())


def record_missing(
    folder: SweepFolder,
    tracker: Tracker,
    trial: FrozenTrial,
    spec: TrialSpec,
    result: TrialResult,
    has_file: bool,
) -> None:
    """Record what an earlier driver did not of a trial that has ended; `spec` is the sweep's.

    A `result.json` stays: it has the traceback, which the study's copy lacks. The tracker is told
    from the start on. If it was only that driver's outbox that is gone, MLflow has all of it
    already, and perhaps the only copy of the adapter.
    """
    number, known = trial.number, trial.user_attrs
    attempt, params, retry_of = int(known["attempt"]), known["params"], known.get("retry_of")
    if not has_file:
        _write_result(folder, number, attempt, result)
    if tracker.has_ended(number):
        return
    point = Point(number, attempt, params, spec.with_params(params), retry_of=retry_of)
    track_start(tracker, point, _ms(trial.datetime_start))
    artifacts = list(_artifacts(folder, number, attempt, result, adapter_may_be_gone=True))
    _track_end(tracker, number, result, artifacts, _ms(trial.datetime_complete))


def _write_result(folder: SweepFolder, number: int, attempt: int, result: TrialResult) -> None:
    if result.traceback:
        traceback = folder.attempt(number, attempt) / "traceback.txt"
        write_whole(traceback, result.traceback)
        folder.keep(traceback)
    write_json(folder.result(number), result.model_dump(mode="json"))
    folder.keep(folder.result(number))


def _track_end(
    tracker: Tracker, number: int, result: TrialResult, artifacts: list[Artifact], time_ms: int
) -> None:
    tracker.trial_progress(number, result.metrics, result.step, time_ms)
    metrics = {
        **{f"memory/{name}": float(value) for name, value in result.memory.items()},
        **{f"seconds/{name}": value for name, value in result.seconds.items()},
        "samples": float(result.samples),
        "tokens": float(result.tokens),
    }
    if result.trainable_parameters is not None:
        metrics["trainable_parameters"] = float(result.trainable_parameters)
    tags = {"trial.state": str(result.state), "trial.kind": str(result.kind or "complete")}
    if result.error:
        tags["trial.error"] = result.error
    tracker.trial_ended(number, _RUN_STATUS[result.state], metrics, tags, artifacts, time_ms)


def now_ms() -> int:
    """Milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


def _ms(moment: datetime | None) -> int:
    return now_ms() if moment is None else int(moment.timestamp() * 1000)


def _artifacts(
    folder: SweepFolder,
    number: int,
    attempt: int,
    result: TrialResult,
    adapter_may_be_gone: bool = False,
) -> Iterator[Artifact]:
    trial, tried = folder.trial(number), folder.attempt(number, attempt)
    if result.adapter is not None:
        yield Artifact(folder.path / result.adapter, "adapter", optional=adapter_may_be_gone)
    for path, to in (
        (trial / "trial.json", "config"),
        (trial / "result.json", "eval"),
        (tried / "metrics.jsonl", "eval"),
        (tried / "log.txt", "logs"),
        (tried / "traceback.txt", "logs"),
    ):
        if folder.in_store or path.exists():
            yield Artifact(path, to, optional=folder.in_store)
