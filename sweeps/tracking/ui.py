"""`mlflow server` on a local storage, for browsing sweeps; bound to this machine by default."""

import os
import socket
import sys
from pathlib import Path

from sweeps.file_names import TRACKING_DATABASE
from sweeps.sqlite_urls import sqlite_url
from sweeps.tracking.artifact_root import artifact_root, follow_database

_ENVIRONMENT = {
    # The job runners of MLflow's evaluation of language models: 13 processes and 2.6 GB instead of
    # 3 and 0.8 GB, and they are not used here.
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


class PortBusy(OSError):
    """Another program listens on the port."""


def ui_command(
    storage: Path, host: str = "127.0.0.1", port: int = 5000
) -> tuple[list[str], dict[str, str]]:
    """The command and the environment of an MLflow server on `storage`.

    It shows, and serves the artifacts of, the runs that were written straight into
    `<storage>/mlflow.db`, and takes runs over HTTP too.
    """
    storage = storage.absolute()
    command = [sys.executable, "-m", "mlflow", "server"]
    database = storage / TRACKING_DATABASE
    command += ["--backend-store-uri", sqlite_url(database)]
    command += ["--serve-artifacts", "--artifacts-destination", artifact_root(database).as_uri()]
    command += ["--host", host, "--port", str(port), "--workers", "1"]
    return command, os.environ | _ENVIRONMENT


def check_port(host: str, port: int) -> None:
    """PortBusy when nothing can listen there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise PortBusy(
                error.errno, f"cannot listen on {host}:{port} ({error.strerror}); name another port"
            ) from error


def serve(storage: Path, host: str = "127.0.0.1", port: int = 5000) -> None:
    """Become the MLflow server on `storage`, until Ctrl-C; does not return.

    Raises FileNotFoundError when nothing was tracked in `storage`, PortBusy when the port is taken.
    """
    if not (storage / TRACKING_DATABASE).is_file():
        raise FileNotFoundError(
            f"no sweep was tracked here: {storage / TRACKING_DATABASE} is not there"
        )
    check_port(host, port)
    follow_database(storage / TRACKING_DATABASE)
    command, environment = ui_command(storage, host, port)
    os.execve(command[0], command, environment)
