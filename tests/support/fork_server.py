"""Python processes that need not import what others have written: forked from one that has done so.

A driver's imports cost five seconds of a core, and torch's with its company another eight. The
server pays them once; each process that it forks is one of its own, in a session of its own. Of
our packages it imports what declares the specs, which reads nothing of the environment.
"""

import functools
import gc
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import time
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OF_A_DRIVER = (
    "sweeps.spec",  # first: pydantic looks for the fields' docstrings in all modules that are there
    "alembic.command",
    "mlflow.store.tracking.sqlalchemy_store",
    "optuna.visualization.matplotlib",
    "psutil",
    "pyarrow.fs",
    "ray.tune.execution.class_cache",
    "rich.live",
    "sklearn.ensemble",
    "typer",
)
OF_A_TRIAL = (
    "accelerate",
    "bitsandbytes",
    "datasets",
    "peft",
    "rouge_score.rouge_scorer",
    "sacrebleu",
    "sklearn.metrics",
    "transformers.trainer",
)
_ENVIRONMENT = {
    # A fork copies one thread.
    "OMP_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    "MLFLOW_CONFIGURE_LOGGING": "false",  # as `sweeps.tracking` has it
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
"""What the packages read at their import."""


class ForkedProcess:
    """What tests use of `subprocess.Popen`; the process is a child of the server."""

    def __init__(self, server: "ForkServer", pid: int) -> None:
        self._server = server
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._server.ask(ended=self.pid)
        return self.returncode

    def wait(self, timeout: float = float("inf")) -> int:
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            time.sleep(0.01)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


@dataclass
class ForkServer:
    """Ends with the process that has started it; what it has forked does not."""

    process: "subprocess.Popen[str]"

    def start(
        self,
        arguments: Sequence[str],
        output: Path,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ) -> ForkedProcess:
        """`python *arguments`, which are `-c PROGRAM ...` or `-m MODULE ...`, leading a session.

        Both its streams go into the file `output`. By default it has this process's environment
        and folder.
        """
        output.write_bytes(b"")
        pid = self.ask(
            arguments=[*arguments],
            output=str(output),
            environment=dict(os.environ if environment is None else environment),
            folder=str(folder or Path.cwd()),
        )
        return ForkedProcess(self, pid)

    def ask(self, **request: Any) -> Any:
        """Hand a request over; see `_serve`."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())


@functools.cache
def fork_server(packages: tuple[str, ...] = OF_A_DRIVER) -> ForkServer:
    """The server of this process that has imported `packages`, started when first asked for."""
    return ForkServer(
        subprocess.Popen(
            [sys.executable, __file__, *packages],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **_ENVIRONMENT},
            start_new_session=True,
        )
    )


def _serve() -> dict[str, Any]:
    """Answer `arguments...` with a new process's id, and `ended` with an exit code or null.

    Returns in each new process, with what was asked of it.
    """
    for line in iter(sys.stdin.readline, ""):
        request = json.loads(line)
        if pid := request.get("ended"):
            ended, status = os.waitpid(pid, os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if ended else None
        else:
            assert len(os.listdir("/proc/self/task")) == 1, "threads do not survive a fork"
            answer = os.fork()
            if answer == 0:
                os.setsid()
                return dict(request)
            while os.getsid(answer) != answer:  # whoever hears of it may signal its group
                time.sleep(0.001)
        print(json.dumps(answer), flush=True)
    sys.exit()


def _become(arguments: list[str], output: str, environment: dict[str, str], folder: str) -> None:
    """Do what a Python that is started with `arguments` does."""
    streams = os.open(os.devnull, os.O_RDONLY), os.open(output, os.O_WRONLY)
    for number, stream in enumerate((*streams, streams[1])):
        os.dup2(stream, number)
    for stream in streams:
        os.close(stream)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    kind, program, *rest = arguments
    sys.path.insert(0, "")
    sys.argv = [kind, *rest]
    if kind == "-m":
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    else:
        sys.modules["__main__"] = main = types.ModuleType("__main__")
        exec(compile(program, "<string>", "exec"), main.__dict__)


if __name__ == "__main__":
    del sys.path[0]  # this folder
    for _name in sys.argv[1:]:
        importlib.import_module(_name)
    gc.freeze()
    _become(**_serve())
