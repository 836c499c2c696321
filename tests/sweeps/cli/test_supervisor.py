"""The supervisor and real children: what is started again, what is not, what is left behind."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.support.ray_nodes import HANG_SECONDS

SUPERVISE = """
import sys
from sweeps.cli import supervisor
supervisor.PAUSE_SECONDS = 0.1
SETTINGS
silence, supervisor.UNAVAILABLE_PATIENCE_SECONDS = map(float, sys.argv[2:])
child = [sys.executable, "-c", sys.argv[1]]
sys.exit(supervisor.supervise(child, [*child, "again"], silence))
"""
CHILD = """
import os, signal, subprocess, sys, time
from pathlib import Path
from sweeps.driver.heartbeat import Heartbeat
heartbeat = Heartbeat.of_environment()
starts = Path("starts")
with starts.open("a") as file:
    file.write(" ".join(["start", *sys.argv[1:]]) + "\\n")
count = len(starts.read_text().splitlines())
heartbeat.beat()
"""

Supervised = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def supervised(tmp_path: Path) -> Supervised:
    """A child's code -> its supervisor, started."""

    def begin(
        code: str, silence: float = 20.0, patience: float = HANG_SECONDS, settings: str = ""
    ) -> "subprocess.Popen[str]":
        supervise = SUPERVISE.replace("SETTINGS", settings)
        return subprocess.Popen(
            [sys.executable, "-c", supervise, CHILD + code, str(silence), str(patience)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=tmp_path,
            start_new_session=True,
        )

    return begin


def starts(tmp_path: Path) -> list[str]:
    path = tmp_path / "starts"
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize("code", [0, 2, 130])
def test_a_driver_that_says_how_it_ended_is_not_started_again(
    supervised: Supervised, tmp_path: Path, code: int
) -> None:
    process = supervised(f"sys.exit({code})")
    assert process.wait(HANG_SECONDS) == code
    assert starts(tmp_path) == ["start"]


def test_a_sweep_that_failed_by_its_own_verdict_is_not_started_again(
    supervised: Supervised, tmp_path: Path
) -> None:
    process = supervised("heartbeat.ended(); sys.exit(1)")
    assert process.wait(HANG_SECONDS) == 1
    assert starts(tmp_path) == ["start"]


@pytest.mark.parametrize("death", ["os.kill(os.getpid(), signal.SIGKILL)", "sys.exit(1)"])
def test_a_driver_that_dies_is_started_again_with_the_command_for_that(
    supervised: Supervised, tmp_path: Path, death: str
) -> None:
    process = supervised(f"heartbeat.trial_ended()\nif count < 3: {death}")
    said, _ = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 0
    assert starts(tmp_path) == ["start", "start again", "start again"]
    assert said.count("starting it again in 0.1 s") == 2


def test_a_driver_that_hangs_is_killed_and_started_again(
    supervised: Supervised, tmp_path: Path
) -> None:
    process = supervised("if count == 1: time.sleep(600)", silence=2.0)
    said, _ = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 0
    assert starts(tmp_path) == ["start", "start again"]
    assert "has said nothing for 2 s" in said


def test_one_that_dies_again_and_again_before_a_trial_ends_is_given_up(
    supervised: Supervised, tmp_path: Path
) -> None:
    process = supervised("if count > 1: sys.exit(1)\nsys.exit(1)")
    said, _ = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 1
    assert len(starts(tmp_path)) == 5
    assert re.findall(r"again in (\S+) s", said) == ["0.1", "0.2", "0.4", "0.8"]
    assert "died 5 times before a trial ended" in said


def test_one_that_dies_too_often_is_given_up_though_trials_end(
    supervised: Supervised, tmp_path: Path
) -> None:
    process = supervised(
        "heartbeat.trial_ended(); sys.exit(1)", settings="supervisor.MAX_STARTS_PER_HOUR = 6"
    )
    said, _ = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 1
    assert len(starts(tmp_path)) == 7
    assert "died 7 times within an hour" in said


def test_a_long_life_is_no_start_in_vain(supervised: Supervised, tmp_path: Path) -> None:
    process = supervised("sys.exit(count < 9)", settings="supervisor.LONG_SECONDS = 0.0")
    assert process.wait(HANG_SECONDS) == 0
    assert len(starts(tmp_path)) == 9


def test_a_signal_that_comes_while_the_driver_is_started_reaches_it(
    supervised: Supervised, tmp_path: Path
) -> None:
    start = (
        "begin = supervisor.subprocess.Popen; "
        "supervisor.subprocess.Popen = lambda *a, **k: "
        "(begin(*a, **k), supervisor.signal.raise_signal(supervisor.signal.SIGTERM))[0]"
    )
    process = supervised("time.sleep(600)", settings=start)
    assert process.wait(HANG_SECONDS) == 130


def test_a_cluster_that_never_was_there_is_a_mistake_one_that_went_away_is_waited_for(
    supervised: Supervised, tmp_path: Path
) -> None:
    never = supervised("sys.exit(69)")
    assert never.wait(HANG_SECONDS) == 2
    assert starts(tmp_path) == ["start"]
    (tmp_path / "starts").unlink()
    away = supervised("if count == 1: sys.exit(1)\nif count < 4: sys.exit(69)")
    assert away.wait(HANG_SECONDS) == 0
    assert len(starts(tmp_path)) == 4
    (tmp_path / "starts").unlink()
    gone = supervised("if count == 1: sys.exit(1)\nsys.exit(69)", patience=0.5)
    assert gone.wait(HANG_SECONDS) == 69


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_reach_the_driver_once_and_end_the_supervision(
    supervised: Supervised, tmp_path: Path, number: signal.Signals
) -> None:
    process = supervised(
        """
def note(number, frame):
    print("got", signal.Signals(number).name, flush=True)
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, note)
print("ready", flush=True)
time.sleep(1.5)
sys.exit(130)
"""
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    os.killpg(process.pid, number)  # as a terminal does
    rest, _ = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 130
    assert rest.splitlines() == [f"got {number.name}"]


def test_what_a_dead_driver_leaves_is_ended(supervised: Supervised, tmp_path: Path) -> None:
    process = supervised(
        """
if count == 1:
    left = subprocess.Popen(["sleep", "600"], start_new_session=True)
    Path("left").write_text(str(left.pid))
    os.kill(os.getpid(), signal.SIGKILL)
"""
    )
    assert process.wait(HANG_SECONDS) == 0
    pid = int((tmp_path / "left").read_text())
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie"


def test_a_driver_learns_that_its_supervisor_is_gone(
    supervised: Supervised, tmp_path: Path
) -> None:
    process = supervised(
        """
while heartbeat.beat():
    time.sleep(0.1)
Path("noticed").touch()
"""
    )
    deadline = time.monotonic() + HANG_SECONDS
    while not starts(tmp_path):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    while not (tmp_path / "noticed").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
