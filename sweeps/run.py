"""`run_sweep`: from a SweepSpec to a leaderboard; the order in which a sweep happens."""

import contextlib
import fcntl
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from peft_jobs import SpecError, State, TrialSpec
from peft_jobs.files import write_json, write_whole
from peft_jobs.job import Prepared
from peft_jobs.provenance import environment
from sweeps.database import open_storage
from sweeps.driver import Driver
from sweeps.inline import InlineBackend
from sweeps.layout import SweepFolder
from sweeps.leaderboard import Leaderboard, make_leaderboard
from sweeps.parent_run import Status, end_sweep, open_tracker
from sweeps.planning import resolve, variants
from sweeps.plots import write_plots
from sweeps.redact import redact
from sweeps.reports import write_reports
from sweeps.spec import SweepSpec
from sweeps.study import SweepStudy

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
    status: Status
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
    with _lease(folder):
        with contextlib.closing(make_backend(spec, folder)) as backend:
            prepared = backend.prepare(spec.trial, variants(spec))
            spec = resolve(spec, prepared)
            study = SweepStudy(spec, open_storage(spec.study_url or folder.study_url))
            study.take_over()
            study.optuna.set_user_attr("baseline", prepared.baseline)
            _write_sweep(spec, folder, source, prepared)
            on_prepared(spec, prepared)
            tracker = open_tracker(study, folder, prepared)
            driver = Driver(spec, study, tracker, folder, on_change)
            try:
                backend.run(driver)
            except BaseException:
                tracker.close(FLUSH_SECONDS)
                raise
        return _finish(driver)


def _finish(driver: Driver) -> Outcome:
    """Write the leaderboard and end the tracking, when the cluster is free again."""
    leaderboard = make_leaderboard(driver.study)
    write_reports(leaderboard, driver.folder)
    if driver.spec.tracking.enabled:
        write_plots(driver.study.optuna, driver.folder.path / "plots")
    status, reason = _status(driver)
    end_sweep(driver, leaderboard, status)
    return Outcome(leaderboard, status, reason, driver.tracker.close(FLUSH_SECONDS))


def make_backend(spec: SweepSpec, folder: SweepFolder) -> Backend:
    """The backend that the sweep names; Ray is imported only if it is that one."""
    options = dict(spec.resources.engine_options)
    if spec.resources.engine == "solo":
        options.setdefault("cache_dir", str(folder.cache))
    if spec.resources.backend == "inline":
        return InlineBackend(spec.resources.engine, options, spec.resources.max_concurrent or 1)
    from sweeps.cluster.backend import RayBackend

    return RayBackend(spec.resources, options)


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


def _write_sweep(
    spec: SweepSpec, folder: SweepFolder, source: str | None, prepared: Prepared
) -> None:
    if source is not None:
        write_whole(folder.path / "sweep.yaml", redact(source))
    record = {
        "sweep": spec.without_credentials().model_dump(mode="json"),
        "prepared": prepared.model_dump(mode="json"),
        "environment": environment(),
    }
    write_json(folder.path / "sweep.json", record)


def _status(driver: Driver) -> tuple[Status, str | None]:
    if driver.interrupted:
        return "interrupted", "interrupted"
    if driver.counts[State.FAIL] > driver.spec.budget.max_failures:
        return "failed", driver.stop_reason
    if driver.best is None:
        return "failed", driver.stop_reason or "no trial completed"
    return "complete", driver.stop_reason
