"""Tells the tracker of a sweep and of its trials: a run each, opened with its spec and ended."""

import math
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from peft_jobs import Progress, State, TrialResult, TrialSpec
from peft_jobs.host.job import Prepared
from peft_jobs.spec import DEMO, Source
from peft_jobs.spec.dotted import flatten
from peft_jobs.storage.attempt_folder import (
    ADAPTER_FOLDER,
    LOG_FILE,
    METRICS_FILE,
    ROWS_FILE,
    TRACEBACK_FILE,
)
from sweeps.errors import Unavailable
from sweeps.records.layout import SweepFolder, run_name
from sweeps.results.leaderboard import Leaderboard
from sweeps.results.reports import markdown, report_artifacts
from sweeps.results.states import INTERRUPTED
from sweeps.results.verdict import Verdict
from sweeps.spec.sample_points import varying_names
from sweeps.study.point import Point
from sweeps.study.study import SweepStudy
from sweeps.tracking import Artifact, Dataset, MlflowTracker, NoTracker, RunStatus, Tracker, View

Status = Literal["complete", "failed", "interrupted"]
"""How a launch ended."""
_DIGEST_CHARACTERS = 16
_RUN_STATUS: dict[State, RunStatus] = {
    State.COMPLETE: "FINISHED",
    State.PRUNED: "FINISHED",
    State.FAIL: "FAILED",
}


def open_tracker(study: SweepStudy, folder: SweepFolder, prepared: Prepared) -> Tracker:
    """The tracker that the sweep names, told that the sweep starts."""
    spec, objective = study.spec, study.spec.objective
    if not spec.tracking.enabled:
        return NoTracker()
    on_gpu = prepared.provenance.get("device") != "cpu"
    memory = "memory/peak_allocated_gib" if on_gpu else "memory/peak_rss_gib"
    view = View(
        objective.metric,
        objective.direction,
        metrics=(memory, "trainable_parameters"),
        params=varying_names(spec),
    )
    uri = spec.tracking.uri or folder.tracking_url
    place = (folder.outbox, uri, spec.tracking.experiment, spec.name)
    try:
        tracker = MlflowTracker(*place, sweep_key=study.key, view=view)
    except sqlite3.Error as error:
        raise Unavailable(
            f"{folder.outbox}, where records wait for MLflow, cannot be opened: {error}; make "
            "room, move it aside (MLflow then lacks what waits in it), or run with tracking=none"
        ) from error
    params = {
        name.removeprefix("trial."): value
        for name, value in flatten(spec.without_credentials()).items()
        if not name.startswith("space.")
    }
    tags = {"mlflow.note.content": f"Sweep `{spec.name}`\n\n```\n{spec.space.describe()}\n```"}
    datasets = _datasets(spec.trial, prepared.provenance)
    tracker.sweep_started(params, tags, report_artifacts(folder, best=None), datasets)
    return tracker


def end_sweep(
    folder: SweepFolder,
    tracker: Tracker,
    counts: Counter[str],
    leaderboard: Leaderboard,
    verdict: Verdict,
    status: Status,
) -> None:
    """Tell the tracker how the sweep ended; an interrupted one stays RUNNING, as its trials do.

    `counts` are trials by state.
    """
    best, chosen = leaderboard.best, verdict.chosen
    metrics = {f"sweep/trials_{name.lower()}": float(n) for name, n in counts.items()}
    said = verdict.sentences()
    tags = {"mlflow.note.content": markdown(leaderboard, said), "verdict": " ".join(said)}
    of = leaderboard.metric.replace("/", "_")
    if best is not None and best.value is not None:
        metrics[f"sweep/best_{of}"] = best.value
        tags["best.trial"] = str(best.number)
        tags |= {f"best.{name}": str(value) for name, value in best.params.items()}
    if chosen is not None:
        tags["recommended.trial"] = str(chosen.number)
        known = {f"expected_{of}": chosen.expected, f"test_of_{of}": chosen.test}
        for name, interval in known.items():
            if interval is not None:
                ends = {"": interval.value, "_low": interval.low, "_high": interval.high}
                metrics |= {f"sweep/{name}{end}": value for end, value in ends.items()}
    artifacts = report_artifacts(folder, leaderboard.chosen)
    if status == "interrupted":
        tracker.sweep_updated(tags, artifacts)
    else:
        ended: RunStatus = "FAILED" if status == "failed" else "FINISHED"
        tracker.sweep_ended(ended, metrics, tags, artifacts)


def track_start(tracker: Tracker, point: Point, time_ms: int) -> None:
    """Tell the tracker that a trial starts, or goes on."""
    tags = {"trial.number": str(point.number), "trial.state": str(State.RUNNING)}
    if point.retry_of is not None:
        tags["trial.retry_of"] = str(point.retry_of)
    if point.confirm_of is not None:
        tags["trial.confirm_of"] = str(point.confirm_of)
    name = run_name(point.number, point.params)
    if point.confirm_of is not None:
        name = f"repeat-{point.number:04d}-of-{point.confirm_of:04d}"
    tracker.trial_started(point.number, name, flatten(point.spec), tags, time_ms)


def track_interruption(tracker: Tracker, number: int) -> None:
    """Tell the tracker that a trial is left without an end; its run stays RUNNING."""
    tracker.trial_tagged(number, {"trial.state": INTERRUPTED}, now_ms())


def all_metrics(measured: Progress | TrialResult) -> dict[str, float]:
    """The metrics, and NaN for those that were not finite, of which the tracker makes tags."""
    return {**dict.fromkeys(measured.not_finite, math.nan), **measured.metrics}


def track_end(
    tracker: Tracker,
    number: int,
    spec: TrialSpec,
    result: TrialResult,
    artifacts: list[Artifact],
    time_ms: int,
) -> None:
    tracker.trial_progress(number, all_metrics(result), result.step, time_ms)
    metrics = {
        **{f"memory/{name}": float(value) for name, value in result.memory.items()},
        **{
            f"memory/{name.removesuffix('_bytes')}_gib": round(value / 2**30, 3)
            for name, value in result.memory.items()
        },
        **{f"seconds/{name}": value for name, value in result.seconds.items()},
        "samples": float(result.samples),
        "tokens": float(result.tokens),
    }
    if result.trainable_parameters is not None:
        metrics["trainable_parameters"] = float(result.trainable_parameters)
    tags = {"trial.state": str(result.state), "trial.kind": str(result.kind or "complete")}
    if result.error:
        tags["trial.error"] = result.error
    datasets = _datasets(spec, result.provenance)
    status = _RUN_STATUS[result.state]
    tracker.trial_ended(number, status, metrics, tags, artifacts, time_ms, datasets)


def _datasets(spec: TrialSpec, seen: Mapping[str, Any]) -> list[Dataset]:
    """The training and validation rows of what has provenance; none of what broke before it."""
    train, validation = spec.data.train, spec.data.validation
    held_out = validation if isinstance(validation, Source) else train
    known, rows = (("train_data", "train"), ("data", "validation")), seen.get("num_rows", {})
    sources = {"train": train, "validation": held_out}
    return [
        Dataset(
            name=f"{Path(sources[split].path).name} ({split})",
            digest=str(seen[part])[:_DIGEST_CHARACTERS],
            source=sources[split].path,
            is_on_hub=not sources[split].is_file and sources[split].path != DEMO,
            context="training" if split == "train" else "validation",
            num_rows=rows.get(split),
        )
        for part, split in known
        if seen.get(part)
    ]


def now_ms() -> int:
    """Milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


def milliseconds(moment: datetime | None) -> int:
    return now_ms() if moment is None else int(moment.timestamp() * 1000)


def trial_artifacts(
    folder: SweepFolder,
    number: int,
    attempt: int,
    result: TrialResult,
    adapter_may_be_gone: bool = False,
) -> Iterator[Artifact]:
    tried = folder.attempt(number, attempt)
    if result.adapter is not None:
        yield Artifact(folder.path / result.adapter, ADAPTER_FOLDER, optional=adapter_may_be_gone)
    for path, to in (
        (folder.trial_file(number), "config"),
        (folder.result(number), "eval"),
        (tried / METRICS_FILE, "eval"),
        (tried / ROWS_FILE, "eval"),
        (tried / LOG_FILE, "logs"),
        (tried / TRACEBACK_FILE, "logs"),
    ):
        if folder.in_store or path.exists():
            yield Artifact(path, to, optional=folder.in_store)
