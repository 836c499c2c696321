"""`data`: what would be trained, told before it is."""

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

from sweeps.cli.display.data_summary import print_summary
from sweeps.cli.preflight import load_checked, summary_of
from sweeps.cli.screen import err, out, print_json
from sweeps.spec.yaml_file import SweepFileError


def data(path: Path, overrides: Sequence[str], max_rows: int, json: bool) -> None:
    """Print the summary of a sweep's data; SweepFileError, after it, with every mistake in them."""
    spec = load_checked(path, overrides)
    with err.status("Looking at the data ..."), contextlib.redirect_stdout(sys.stderr):
        summary = summary_of(spec, max_rows)
    if json:
        print_json(summary)
    else:
        print_summary(summary, out)
    if summary["mistakes"]:
        raise SweepFileError(str(path), summary["mistakes"])
