"""The end of a trial outside the study: its adapter's place, `result.json`, its run in MLflow."""

import shutil
import time
from collections.abc import Iterator

from peft_jobs import State, TrialResult, faults
from peft_jobs.files import write_json, write_whole
from sweeps.layout import SweepFolder
from sweeps.tracking import Artifact, RunStatus, Tracker

_RUN_STATUS: dict[State, RunStatus] = {
    State.COMPLETE: "FINISHED",
    State.PRUNED: "KILLED",
    State.FAIL: "FAILED",
}


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
    """Write `result.json` and tell the tracker, once the study was told. May be repeated."""
    if result.traceback:
        traceback = folder.attempt(number, attempt) / "traceback.txt"
        write_whole(traceback, result.traceback)
        folder.keep(traceback)
    write_json(folder.result(number), result.model_dump(mode="json"))
    folder.keep(folder.result(number))
    faults.passing("end.file")
    tracker.trial_progress(number, result.metrics, result.step, now_ms())
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
    artifacts = list(_artifacts(folder, number, attempt, result))
    status = _RUN_STATUS[result.state]
    tracker.trial_ended(number, status, metrics, tags, artifacts, now_ms())


def now_ms() -> int:
    """Milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


def _artifacts(
    folder: SweepFolder, number: int, attempt: int, result: TrialResult
) -> Iterator[Artifact]:
    trial, tried = folder.trial(number), folder.attempt(number, attempt)
    if result.adapter is not None:
        yield Artifact(folder.path / result.adapter, "adapter")
    for path, to in (
        (trial / "trial.json", "config"),
        (trial / "result.json", "eval"),
        (tried / "metrics.jsonl", "eval"),
        (tried / "log.txt", "logs"),
        (tried / "traceback.txt", "logs"),
    ):
        if folder.in_store or path.exists():
            yield Artifact(path, to, optional=folder.in_store)
