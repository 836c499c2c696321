"""`ui`: hand over to MLflow's server on a storage."""

import sys
from pathlib import Path

from sweeps.cli.screen import say
from sweeps.file_names import TRACKING_DATABASE
from sweeps.tracking.ui import serve
from sweeps.tracking.view import browse_url


def ui(storage: Path, port: int) -> None:
    """Become the server; returns only by an error (nothing tracked there, the port taken)."""
    database = storage / TRACKING_DATABASE
    if database.is_file():
        say(f"MLflow shows {storage} in some seconds (Ctrl-C ends it); the newest sweep is at")
        say(f"  {browse_url(f'http://127.0.0.1:{port}', database)}")
    sys.stdout.flush()
    sys.stderr.flush()
    serve(storage, port=port)
