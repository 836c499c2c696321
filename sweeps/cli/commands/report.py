"""`report`: write a sweep as one HTML page."""

from pathlib import Path

from peft_jobs import SpecError
from sweeps.cli.screen import say
from sweeps.file_names import REPORT_FILE
from sweeps.report.report import write_report
from sweeps.results.recorded_sweep import RecordedSweep


def report(sweep: RecordedSweep, path: Path | None) -> None:
    """Write the page and say where; SpecError where a file is there that was named, or none can be.

    Without `path` it replaces the one in the sweep's folder.
    """
    if path is not None and path.exists():
        raise SpecError(f"{path} is there already; name another file, or remove it")
    if path is None and sweep.folder.in_store:
        raise SpecError(f"{sweep.folder.location} is no folder of this machine: give --out FILE")
    page = path or sweep.folder.path / REPORT_FILE
    try:
        write_report(sweep, page)
    except OSError as error:
        raise SpecError(f"{page} cannot be written: {error.strerror}; give --out FILE") from error
    say(f"Wrote {page}")
