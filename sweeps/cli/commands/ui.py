"""`ui`: hand over to MLflow's server, or to Optuna's dashboard, on a storage."""

import importlib.util
import sys
from pathlib import Path

from peft_jobs import SpecError
from sweeps.cli.screen import say
from sweeps.file_names import STUDY_DATABASE, TRACKING_DATABASE
from sweeps.redact import redact
from sweeps.sqlite_urls import sqlite_url
from sweeps.study.database import open_to_read
from sweeps.tracking.ui import check_port, serve
from sweeps.tracking.view import browse_url

_HOST = "127.0.0.1"


def ui(storage: Path, port: int) -> None:
    """Become the server; returns only by an error (nothing tracked there, the port taken)."""
    database = storage / TRACKING_DATABASE
    if database.is_file():
        say(f"MLflow shows {storage} in some seconds (Ctrl-C ends it); the newest sweep is at")
        say(f"  {browse_url(f'http://{_HOST}:{port}', database)}")
    sys.stdout.flush()
    sys.stderr.flush()
    serve(storage, port=port)


def optuna_ui(storage: Path, study_url: str | None, port: int) -> None:
    """Serve Optuna's dashboard on the studies of a storage, or of the database that is given, until
    Ctrl-C. SpecError where it is not installed or there are no studies, PortBusy."""
    if importlib.util.find_spec("optuna_dashboard") is None:
        raise SpecError(
            "Optuna's dashboard is not installed: `pip install optuna-dashboard`, or the extra "
            "`dashboard` of peft-sweeps, brings it"
        )
    url = study_url or sqlite_url(storage.absolute() / STUDY_DATABASE)
    studies = open_to_read(url)
    if studies is None:
        raise SpecError(f"there are no studies in {redact(url)}; give the folder with --storage")
    check_port(_HOST, port)
    from optuna_dashboard import run_server

    say(f"Optuna's dashboard shows the studies of {redact(url)} (Ctrl-C ends it) at")
    say(f"  http://{_HOST}:{port}/dashboard/")
    say("Look, and do not delete: the study is the record of its sweep.")
    run_server(studies, host=_HOST, port=port)
