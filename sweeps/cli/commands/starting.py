"""`status`, `watch` and `stop` of a sweep that has no trial yet: it loads its base and data."""

import time
from collections.abc import Callable
from dataclasses import asdict

from sweeps.cli.commands.status import WATCH_SECONDS, driver_of, end_driver
from sweeps.cli.exit_codes import ExitCode
from sweeps.cli.screen import out, pairs, print_json, say
from sweeps.results.recorded_sweep import RecordedSweep, Starting
from sweeps.results.states import STATES


def status_of_start(start: Starting, json: bool) -> None:
    """Print who starts the sweep."""
    if json:
        print_json(
            {
                "sweep": start.name,
                "driven": True,
                "driver": asdict(start.holder),
                "trials": dict.fromkeys(STATES, 0),
                "running": [],
                "interrupted": [],
                "best": None,
                "starting": True,
            }
        )
    else:
        out.print(pairs({"driver": driver_of(start.holder), "trials": "none yet: starting"}))


def started(open_it: Callable[[], RecordedSweep]) -> RecordedSweep:
    """The sweep, waited for while it is starting."""
    told = False
    while True:
        try:
            return open_it()
        except Starting as start:
            if not told:
                say(str(start))
                told = True
            time.sleep(WATCH_SECONDS)


def stop_start(start: Starting) -> ExitCode:
    """Ask the driver to stop, and wait until it has."""
    return end_driver(
        start.name, start.option, start.engine, start.holder, lambda: "no trial was started"
    )
