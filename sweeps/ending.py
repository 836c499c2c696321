"""The end of a trial outside the study: its adapter's place, `result.json`, its run in MLflow."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

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
    """Move a saved adapter from the attempt's folder to the trial's; the result that says so."""
    if result.adapter is None:
        return result
    source = folder.attempt(number, attempt) / result.adapter
    target = folder.trial(number) / "adapter"
    shutil.rmtree(target, ignore_errors=True)  # of a driver that died before it told the end
    source.rename(target)
    return result.model_copy(update={"adapter": str(target.relative_to(folder.path))})


def record_end(
    folder: SweepFolder, tracker: Tracker, number: int, attempt: int, result: TrialResult
) -> None:
    """Write `result.json` and tell the tracker, once the study was told. May be repeated."""
    if result.traceback:
        write_whole(folder.attempt(number, attempt) / "traceback.txt", result.traceback)
    write_json(folder.result(number), result.model_dump(mode="json"))
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
    artifacts = list(_artifacts(folder.trial(number), folder.attempt(number, attempt)))
    status = _RUN_STATUS[result.state]
    tracker.trial_ended(number, status, metrics, tags, artifacts, now_ms())


def now_ms() -> int:
    """Milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


def _artifacts(trial: Path, attempt: Path) -> Iterator[Artifact]:
    for path, to in (
        (trial / "adapter", "adapter"),
        (trial / "trial.json", "config"),
        (trial / "result.json", "eval"),
        (attempt / "metrics.jsonl", "eval"),
        (attempt / "log.txt", "logs"),
        (attempt / "traceback.txt", "logs"),
    ):
        if path.exists():
            yield Artifact(path, to)
