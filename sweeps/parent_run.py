"""The sweep as a run of the tracker: opened with its spec, ended with its leaderboard."""

from typing import Literal

from peft_jobs.dotted import flatten
from peft_jobs.job import Prepared
from sweeps.checks import varying_names
from sweeps.driver import Driver
from sweeps.layout import SweepFolder
from sweeps.leaderboard import Leaderboard
from sweeps.reports import markdown, report_artifacts
from sweeps.study import SweepStudy
from sweeps.tracking import MlflowTracker, NoTracker, RunStatus, Tracker, View

Status = Literal["complete", "failed", "interrupted"]
"""How a launch ended."""


def open_tracker(study: SweepStudy, folder: SweepFolder, prepared: Prepared) -> Tracker:
    """The tracker that the sweep names, told that the sweep starts."""
    spec, objective = study.spec, study.spec.objective
    if not spec.tracking.enabled:
        return NoTracker()
    on_gpu = prepared.provenance.get("device") != "cpu"
    memory = "memory/peak_allocated_bytes" if on_gpu else "memory/peak_rss_bytes"
    tracker = MlflowTracker(
        folder.outbox,
        spec.tracking.uri or folder.tracking_url,
        spec.tracking.experiment,
        spec.name,
        sweep_key=study.key,
        view=View(
            objective.metric,
            objective.direction,
            metrics=(memory, "trainable_parameters"),
            params=varying_names(spec),
        ),
    )
    params = {
        name.removeprefix("trial."): value
        for name, value in flatten(spec.without_credentials()).items()
        if not name.startswith("space.")
    }
    tags = {"mlflow.note.content": f"Sweep `{spec.name}`\n\n```\n{spec.space.describe()}\n```"}
    tracker.sweep_started(params, tags, report_artifacts(folder, best=None))
    return tracker


def end_sweep(driver: Driver, leaderboard: Leaderboard, status: Status) -> None:
    """Tell the tracker how the sweep ended; an interrupted one stays RUNNING, as its trials do."""
    best = leaderboard.best
    metrics = {f"sweep/trials_{name.lower()}": float(n) for name, n in driver.counts.items()}
    tags = {"mlflow.note.content": markdown(leaderboard)}
    if best is not None and best.value is not None:
        metrics[f"sweep/best_{leaderboard.metric.replace('/', '_')}"] = best.value
        tags["best.trial"] = str(best.number)
        tags |= {f"best.{name}": str(value) for name, value in best.params.items()}
    artifacts = report_artifacts(driver.folder, best)
    if status == "interrupted":
        driver.tracker.sweep_started({}, tags, artifacts)
    else:
        ended: RunStatus = "FAILED" if status == "failed" else "FINISHED"
        driver.tracker.sweep_ended(ended, metrics, tags, artifacts)
