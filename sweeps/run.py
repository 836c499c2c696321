"""`run_sweep`: from a SweepSpec to a leaderboard; the order in which a sweep happens."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from peft_jobs.host.job import Prepared
from peft_jobs.provenance import environment
from peft_jobs.storage.files import write_json, write_whole
from sweeps.backends.backend import Backend, make_backend
from sweeps.confirmation.rounds import check_confirmable
from sweeps.driver.confirming import ConfirmingDriver, repeats_at_once
from sweeps.driver.driver import Driver
from sweeps.driver.heartbeat import Heartbeat
from sweeps.driver.interrupts import interrupted_by_signals
from sweeps.driver.predictor import predictions
from sweeps.driver.results_told import FLUSH_SECONDS, enduring, write_results
from sweeps.driver.tracked_runs import Status, end_sweep, open_tracker
from sweeps.futures import while_ticking
from sweeps.records.inputs import functions, space_functions, with_inputs
from sweeps.records.layout import SweepFolder
from sweeps.records.mirror import mirrored
from sweeps.records.own_code import code_fingerprints
from sweeps.records.ownership import home_of, own_id
from sweeps.results.comparable import COMPARABLE
from sweeps.results.leaderboard import Leaderboard
from sweeps.results.recorded_sweep import RecordedSweep
from sweeps.results.verdict import Verdict
from sweeps.spec import SweepSpec
from sweeps.spec.identity import adapter_key
from sweeps.spec.loading import as_file
from sweeps.spec.plan import resolve, sources, trials_at_once, variants, with_slots
from sweeps.spec.sweep import ConfirmSpec
from sweeps.study import reruns
from sweeps.study.database import open_storage
from sweeps.study.lease import Lease
from sweeps.study.study import SweepStudy

_T = TypeVar("_T")


@dataclass(frozen=True)
class Outcome:
    """How a launch ended."""

    leaderboard: Leaderboard
    verdict: Verdict
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


@dataclass(frozen=True)
class LaunchCallbacks:
    """Who is told how a launch goes; by default nobody."""

    on_stage: Callable[[str], None] = lambda _: None
    """Told now and then, before the first trial, what the work is at (`peft_jobs.activity`)."""
    on_prepared: Callable[[SweepSpec, Prepared], None] = lambda *_: None
    on_change: Callable[[Driver], None] = lambda _: None
    heartbeat: Heartbeat = field(default_factory=Heartbeat)


def launch(
    spec: SweepSpec,
    callbacks: LaunchCallbacks | None = None,
    retry_failed: bool = False,
    moved: bool = False,
    confirm_only: bool = False,
) -> Outcome:
    """`run_sweep` with what a command line needs: `retry_failed` runs the trials that failed once
    more; `moved` says that the storage was elsewhere before; `confirm_only` starts no new trial,
    but the repeats of `spec.confirm`.
    """
    folder = SweepFolder.of(spec)
    with mirrored(folder.path, FLUSH_SECONDS) as mirror:
        folder = folder.with_mirror(mirror)
        given = callbacks or LaunchCallbacks()
        return _launch(spec, folder, given, retry_failed, moved, confirm_only)


def _launch(
    spec: SweepSpec,
    folder: SweepFolder,
    callbacks: LaunchCallbacks,
    retry_failed: bool,
    moved: bool,
    confirm_only: bool,
) -> Outcome:
    own_id(spec, folder, moved)
    folder.path.mkdir(parents=True, exist_ok=True)
    storage = open_storage(spec.study_url or folder.study_url)
    with _driving(Lease(storage, spec.name), callbacks.heartbeat) as tick:
        key = own_id(spec, folder, moved)  # once more: of two that begin at once, one has waited
        folder.write_now(folder.id, key)
        spec = while_ticking(partial(with_inputs, spec, folder), lambda: _stop_if(tick()), "inputs")
        callbacks.on_stage("ray" if spec.resources.backend == "ray" else "load")
        with contextlib.closing(make_backend(spec, folder)) as backend:
            prepared = backend.prepare(
                spec.trial, variants(spec), lambda: _stop_if(tick()), callbacks.on_stage
            )
            spec = resolve(spec, prepared)
            study = SweepStudy(spec, storage)
            study.take_over(_seen(spec, prepared), key, home_of(folder))
            study.on_wait = callbacks.heartbeat.beat
            study.optuna.set_user_attr("baseline", prepared.baseline)
            study.optuna.set_user_attr("majority", prepared.majority)
            if retry_failed:
                reruns.retry_failed(study)
            confirm = spec.confirm or ConfirmSpec()
            num_ended = sum("result" in trial.user_attrs for trial in study.launched())
            most = repeats_at_once(confirm) if confirm_only else trials_at_once(spec, num_ended)
            spec = with_slots(spec, prepared, most)
            with enduring(folder.record.exists(), "the sweep's record"):
                _write_sweep(spec, folder, prepared)
            callbacks.on_prepared(spec, prepared)
            if confirm_only:
                check_confirmable(study)
            tracker = open_tracker(study, folder, prepared)
            ended = callbacks.heartbeat.trial_ended
            known = (spec, study, tracker, folder, callbacks.on_change, tick, ended)
            if not confirm_only:
                driver = Driver(*known)
                _drive(backend, driver, prepared)
            if confirm_only or (spec.confirm is not None and _status(driver)[0] == "complete"):
                driver = ConfirmingDriver(*known, confirm=confirm)
                _drive(backend, driver, prepared)
        return while_ticking(partial(_finish, driver), tick, "reports")


def _drive(backend: Backend, driver: Driver, prepared: Prepared) -> None:
    try:
        with predictions(driver.study, prepared), interrupted_by_signals(driver):
            backend.run(driver)
    except BaseException:
        driver.finish_files()
        driver.tracker.close(FLUSH_SECONDS)
        raise
    driver.note_time()  # a second driver of this launch counts on from there
    driver.finish_files()


@contextlib.contextmanager
def _driving(lease: Lease, heartbeat: Heartbeat) -> Iterator[Callable[[], bool]]:
    """Hold the lease; gives what to call all the time, and which says whether to stop."""
    lease.take(heartbeat.beat)
    try:
        yield lambda: lease.renew(heartbeat.beat) or not heartbeat.beat()
    finally:
        lease.release()


def _stop_if(wanted: bool) -> None:
    if wanted:
        raise KeyboardInterrupt


def _finish(driver: Driver) -> Outcome:
    """Write the leaderboard and end the tracking, when the cluster is free again."""
    sweep = RecordedSweep(driver.study, driver.folder)
    leaderboard, verdict = write_results(sweep)
    status, reason = _status(driver)
    end_sweep(driver.folder, driver.tracker, driver.counts, leaderboard, verdict, status)
    undelivered = driver.tracker.close(FLUSH_SECONDS)
    driver.drop_adapters()
    return Outcome(leaderboard, verdict, status, reason, undelivered)


def _seen(spec: SweepSpec, prepared: Prepared) -> dict[str, Any]:
    """Fingerprints of all that decides trials beside the sweep's own words."""
    code = code_fingerprints({*functions(spec), *space_functions(spec)})
    return {
        **{part: prepared.provenance.get(part) for part in COMPARABLE},
        **{adapter_key(name): sha for name, sha in sources(spec).items()},
        **prepared.contents,
        **{f"code of {reference}": sha for reference, sha in code.items()},
    }


def _write_sweep(spec: SweepSpec, folder: SweepFolder, prepared: Prepared) -> None:
    write_whole(folder.source, as_file(spec))
    record = {
        "sweep": spec.without_credentials().model_dump(mode="json"),
        "prepared": prepared.model_dump(mode="json"),
        "environment": environment(),
    }
    write_json(folder.record, record)
    folder.keep(folder.source, folder.record)


def _status(driver: Driver) -> tuple[Status, str | None]:
    if driver.interrupted:
        return "interrupted", "interrupted"
    budget = driver.budget
    if budget.failed or budget.has_too_many_failures:
        return "failed", budget.stop_reason
    if driver.best is None:
        return "failed", budget.stop_reason or "no trial completed"
    return "complete", budget.stop_reason
