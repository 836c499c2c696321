"""Writes what a sweep says into its folder and MLflow: after a launch, and when more is known."""

import contextlib
import json
import logging
from collections import Counter
from collections.abc import Iterator

from peft_jobs import SpecError
from peft_jobs.host.job import Prepared
from sweeps.driver.tracked_runs import end_sweep, open_tracker
from sweeps.file_names import LEADERBOARD_JSON
from sweeps.records.reader import read_record
from sweeps.report.pictures import write_pictures
from sweeps.report.report import keep_report
from sweeps.results.leaderboard import Leaderboard
from sweeps.results.recorded_sweep import RecordedSweep
from sweeps.results.reports import write_reports
from sweeps.results.verdict import Verdict
from sweeps.study.lease import Lease

log = logging.getLogger(__name__)

FLUSH_SECONDS = 30.0
"""That the tracking server is waited for at the end."""


def write_results(sweep: RecordedSweep) -> tuple[Leaderboard, Verdict]:
    """Write leaderboard, figures and page of a sweep that this process drives; both as they are."""
    board = sweep.leaderboard(intervals=True)
    verdict = sweep.verdict(board)
    with enduring(True, "the leaderboard"):
        write_reports(board, verdict, sweep.folder)
        if sweep.spec.tracking.enabled:
            if write_pictures(board, sweep.study, verdict, sweep.folder.plots):
                sweep.folder.keep(sweep.folder.plots)
            keep_report(sweep, board, verdict)
    return board, verdict


def tell_again(sweep: RecordedSweep) -> bool:
    """Write the results of a sweep that is at its end anew, and tell MLflow, where the verdict says
    more than they do: an export has read the test rows, say. Whether that was done.

    A sweep that is driven is left to its driver, and one that cannot be written as it is.
    """
    folder = sweep.folder
    known = json.loads(folder.read(folder.path / LEADERBOARD_JSON) or "{}").get("verdict", {})
    now = sweep.verdict()
    if now.status != "ended" or not known or known.get("sentences") == now.sentences():
        return False
    lease = Lease(sweep.study.storage, sweep.name)
    try:
        lease.take()
    except SpecError:
        return False
    try:
        board, verdict = write_results(sweep)
        if "***@" in (sweep.spec.tracking.uri or ""):
            log.warning("MLflow is not told: the credentials of its address are not recorded")
            return True
        prepared = Prepared.model_validate(read_record(folder.storage, sweep.name)["prepared"])
        tracker = open_tracker(sweep.study, folder, prepared)
        end_sweep(folder, tracker, Counter(), board, verdict, "complete")
        if left := tracker.close(FLUSH_SECONDS):
            log.warning("MLflow has not taken %d records: the next launch delivers them", left)
    except OSError as error:
        log.warning("the results of %s are not written anew: %s", sweep.name, error)
        return False
    finally:
        lease.release()
    return True


@contextlib.contextmanager
def enduring(may_lack: bool, what: str) -> Iterator[None]:
    """A disk that does not take `what` is logged, if the sweep may lack it."""
    try:
        yield
    except OSError as error:
        if not may_lack:
            raise
        log.error("%s cannot be written: %s", what, error)
