"""An MLflow server in a process of its own, and a port that leads to it or to nobody."""

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from sweeps.tracking.ui import ui_command
from tests.support.mlflow_database import lay_out


@dataclass
class Server:
    """An MLflow server in a process group of its own."""

    storage: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        lay_out(self.storage)
        command, environment = ui_command(self.storage, port=self.port)
        with (self.storage / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=1):
                    return
            except OSError:
                assert self.process.poll() is None, (self.storage / "server.log").read_text()
                time.sleep(0.1)
        raise TimeoutError((self.storage / "server.log").read_text())

    def stop(self, with_signal: signal.Signals = signal.SIGTERM) -> None:
        if self.process:
            os.killpg(self.process.pid, with_signal)
            self.process.wait(20)
            self.process = None


class Gate:
    """A port at which nobody listens until `open` forwards it to a server."""

    def __init__(self, target_port: int) -> None:
        self._socket = _bound(0)
        self.port: int = self._socket.getsockname()[1]
        self._target = ("127.0.0.1", target_port)
        self._live: list[socket.socket] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def open(self) -> None:
        self._socket.listen()
        threading.Thread(target=self._accept, args=(self._socket,), daemon=True).start()

    def close(self) -> None:
        """Nobody listens any more, and who was being served is cut off."""
        for one in (self._socket, *self._live):
            with contextlib.suppress(OSError):  # it has ended by itself
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self._socket, self._live = _bound(self.port), []

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:  # closed
                return
            try:
                upstream = socket.create_connection(self._target)
            except OSError:  # the server behind is away
                client.close()
                continue
            self._live = [one for one in self._live if one.fileno() >= 0] + [client, upstream]
            for source, sink in ((client, upstream), (upstream, client)):
                threading.Thread(target=_pump, args=(source, sink), daemon=True).start()


def _bound(port: int) -> socket.socket:
    """A socket that keeps a port for us (0: a free one) without listening at it."""
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    one.bind(("127.0.0.1", port))
    return one


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
