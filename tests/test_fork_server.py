"""Forked processes are what the tests take them for: each one of its own, with its own end."""

import os
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from tests.support.fork_server import fork_server

SERVER = ("fractions",)


def test_a_forked_process_is_a_python_of_its_own(tmp_path: Path) -> None:
    program = (
        "import os, sys; print(sys.argv, os.getpid(), os.getsid(0), os.getcwd(), os.environ['A'],"
        " 'fractions' in sys.modules, 'tests' in sys.modules); sys.exit(7)"
    )
    output, arguments = tmp_path / "output.txt", ["-c", program, "word"]
    process = fork_server(SERVER).start(arguments, output, {"A": "given"}, tmp_path)
    assert process.wait(20) == process.returncode == 7
    told = f"['-c', 'word'] {process.pid} {process.pid} {tmp_path} given True False\n"
    assert output.read_text() == told


def test_it_runs_what_is_to_be_done_at_its_exit_and_fails_as_python_does(tmp_path: Path) -> None:
    output = tmp_path / "output.txt"
    (tmp_path / "late.py").write_text("import atexit; atexit.register(print, 'late'); 1 / 0")
    process = fork_server(SERVER).start(["-m", "late"], output, folder=tmp_path)
    assert process.wait(20) == 1
    assert "ZeroDivisionError" in output.read_text()
    assert output.read_text().endswith("late\n")


def test_a_signal_ends_it_and_nothing_else(tmp_path: Path) -> None:
    server, sleep = fork_server(SERVER), ["-c", "import time; time.sleep(600)"]
    killed, other = (server.start(sleep, tmp_path / name) for name in "ab")
    assert killed.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        killed.wait(0.05)
    killed.kill()
    assert killed.wait(20) == -signal.SIGKILL
    assert psutil.pid_exists(other.pid)
    os.killpg(other.pid, signal.SIGTERM)
    assert other.wait(20) == -signal.SIGTERM
    assert not psutil.pid_exists(other.pid)
