"""`run_sweep`: from a SweepSpec to a leaderboard; the order in which a sweep happens."""

import contextlib
import fcntl
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from peft_jobs import SpecError, State, TrialSpec
from peft_jobs.files import write_json, write_whole
from peft_jobs.job import Prepared
from peft_jobs.provenance import environment
from sweeps.checks import flatten, varying_names
from sweeps.database import open_storage
from sweeps.driver import Driver
from sweeps.inline import InlineBackend
from sweeps.layout import SweepFolder
from sweeps.leaderboard import Leaderboard, make_leaderboard
from sweeps.planning import resolve, variants
from sweeps.plots import write_plots
from sweeps.redact import redact
from sweeps.reports import markdown, report_artifacts, write_reports
from sweeps.spec import SweepSpec
from sweeps.study import SweepStudy
from sweeps.tracking import MlflowTracker, NoTracker, Tracker, View

log = logging.getLogger(__name__)

FLUSH_SECONDS = 30.0
"""How long the end of a sweep waits for the tracking server."""


class Backend(Protocol):
    """What executes trials: inline or Ray."""

    def prepare(self, spec: TrialSpec, variants: Sequence[TrialSpec]) -> Prepared: ...
    def run(self, driver: Driver) -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class Outcome:
    """How a launch ended."""

    leaderboard: Leaderboard
    status: Literal["complete", "failed", "interrupted"]
    reason: str | None
    undelivered: int
    """Operations that the tracking server did not take; the next launch delivers them."""


def run_sweep(spec: SweepSpec) -> Leaderboard:
    """Run the sweep, or take it up again, and return its leaderboard.

    Raises SpecError or DataError before any trial starts if the sweep cannot run, RuntimeError if
    it failed, KeyboardInterrupt if it was interrupted (the study says which trials were).
    """
    outcome = launch(spec)
    if outcome.status == "interrupted":
        raise KeyboardInterrupt
    if outcome.status == "failed":
        raise RuntimeError(f"the sweep {spec.name!r} failed: {outcome.reason}")
    return outcome.leaderboard


def launch(
    spec: SweepSpec,
    source: str | None = None,
    on_change: Callable[[Driver], None] = lambda _: None,
    on_prepared: Callable[[SweepSpec, Prepared], None] = lambda *_: None,
) -> Outcome:
    """`run_sweep` with what a command line needs: `source` is the sweep file's text."""
    folder = SweepFolder.of(spec)
    with _lease(folder), contextlib.closing(make_backend(spec, folder)) as backend:
        prepared = backend.prepare(spec.trial, variants(spec))
        spec = resolve(spec, prepared)
        study = SweepStudy(spec, open_storage(spec.study_url or folder.study_url))
        study.take_over()
        study.optuna.set_user_attr("baseline", prepared.baseline)
        _write_sweep(spec, folder, source, prepared)
        on_prepared(spec, prepared)
        tracker = make_tracker(spec, folder, study, prepared)
        _track_start(tracker, spec, folder)
        driver = Driver(spec, study, tracker, folder, on_change)
        try:
            backend.run(driver)
            leaderboard = make_leaderboard(study)
            write_reports(leaderboard, folder)
            if spec.tracking.enabled:
                write_plots(study.optuna, folder.path / "plots")
            _track_end(tracker, driver, leaderboard)
        finally:
            undelivered = tracker.close(FLUSH_SECONDS)
    status, reason = _status(driver)
    return Outcome(leaderboard, status, reason, undelivered)


def make_backend(spec: SweepSpec, folder: SweepFolder) -> Backend:
    """The backend that the sweep names; Ray is imported only if it is that one."""
    options = dict(spec.resources.engine_options)
    if spec.resources.engine == "solo":
        options.setdefault("cache_dir", str(folder.cache))
    if spec.resources.backend == "inline":
        return InlineBackend(spec.resources.engine, options, spec.resources.max_concurrent or 1)
    from sweeps.cluster.backend import RayBackend

    return RayBackend(spec.resources, options)


def make_tracker(
    spec: SweepSpec, folder: SweepFolder, study: SweepStudy, prepared: Prepared
) -> Tracker:
    """The tracker that the sweep names."""
    on_gpu = prepared.provenance.get("device") != "cpu"
    if not spec.tracking.enabled:
        return NoTracker()
    memory = f"memory/{'peak_allocated_bytes' if on_gpu else 'peak_rss_bytes'}"
    objective = spec.objective
    return MlflowTracker(
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


@contextlib.contextmanager
def _lease(folder: SweepFolder) -> Iterator[None]:
    """Hold the sweep against a second driver on this machine, until this process ends."""
    folder.path.mkdir(parents=True, exist_ok=True)
    with (folder.path / ".lease").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SpecError(
                f"the sweep {folder.name!r} is being driven by another process; wait for it, "
                "or give this sweep another name"
            ) from None
        yield


def public(spec: SweepSpec) -> dict[str, object]:
    """The resolved sweep as recorded: JSON values, without credentials in URLs."""
    tree = spec.model_dump(mode="json")
    if tree["study_url"]:
        tree["study_url"] = redact(tree["study_url"])
    if tree["tracking"]["uri"]:
        tree["tracking"]["uri"] = redact(tree["tracking"]["uri"])
    return tree


def _write_sweep(
    spec: SweepSpec, folder: SweepFolder, source: str | None, prepared: Prepared
) -> None:
    if source is not None:
        write_whole(folder.path / "sweep.yaml", redact(source))
    record = {
        "sweep": public(spec),
        "prepared": prepared.model_dump(mode="json"),
        "environment": environment(),
    }
    write_json(folder.path / "sweep.json", record)


def _track_start(tracker: Tracker, spec: SweepSpec, folder: SweepFolder) -> None:
    params = {k: v for k, v in flatten(spec).items() if not k.startswith(("space.", "trial."))}
    params |= flatten(spec.trial)
    for name, value in (("study_url", spec.study_url), ("tracking.uri", spec.tracking.uri)):
        params[name] = redact(value) if value else None
    tags = {"mlflow.note.content": f"Sweep `{spec.name}`\n\n```\n{spec.space.describe()}\n```"}
    tracker.sweep_started(params, tags, report_artifacts(folder, best=None))


def _track_end(tracker: Tracker, driver: Driver, leaderboard: Leaderboard) -> None:
    best = leaderboard.best
    metrics = {f"sweep/trials_{name.lower()}": float(n) for name, n in driver.counts.items()}
    tags = {"mlflow.note.content": markdown(leaderboard)}
    if best is not None and best.value is not None:
        metrics[f"sweep/best_{leaderboard.metric.replace('/', '_')}"] = best.value
        tags["best.trial"] = str(best.number)
        tags |= {f"best.{name}": str(value) for name, value in best.params.items()}
    if driver.interrupted:  # the parent stays RUNNING, as the trials do
        tracker.sweep_started({}, tags, report_artifacts(driver.folder, best))
    else:
        failed = _status(driver)[0] == "failed"
        artifacts = report_artifacts(driver.folder, best)
        tracker.sweep_ended("FAILED" if failed else "FINISHED", metrics, tags, artifacts)


def _status(driver: Driver) -> tuple[Literal["complete", "failed", "interrupted"], str | None]:
    if driver.interrupted:
        return "interrupted", "interrupted"
    if driver.counts[State.FAIL] > driver.spec.budget.max_failures:
        return "failed", driver.stop_reason
    if driver.best is None:
        return "failed", driver.stop_reason or "no trial completed"
    return "complete", driver.stop_reason
