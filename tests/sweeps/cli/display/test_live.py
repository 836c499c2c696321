"""The live display: drawn from snapshots, and seen on a real terminal."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.console import Console

from peft_jobs import Progress, State, TrialResult
from sweeps import SweepSpec, load_sweep
from sweeps.cli.display.live import Shown, render
from sweeps.cli.display.snapshot import EndedTrial, RunningTrial, Snapshot

PROGRAM = "from sweeps.cli import main; main()"
SLOW = "resources.engine_options={step_seconds: 0.05, num_slots: 2}"
NOW = 1000.0


@pytest.fixture
def spec(folder: Path) -> SweepSpec:
    """Nine trials of 900 samples."""
    return load_sweep(folder / "waves.yaml")


def drawn(snapshot: Snapshot, spec: SweepSpec, room: int = 10, width: int = 100) -> str:
    """The block as text."""
    resolved = spec.model_copy(
        update={"trial": spec.trial.with_params({"training.max_samples": 900})}
    )
    console = Console(width=width, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(render(snapshot, Shown(resolved, 9, NOW, room, width)))
    return console.export_text()


def running(number: int, samples: int, **metrics: float) -> RunningTrial:
    progress = Progress(step=samples // 8, samples=samples, tokens=samples, metrics=metrics)
    return RunningTrial(number, 1, NOW - 65, {"adapter.r": 8}, progress)


def test_it_shows_states_best_and_what_each_trial_is_at(spec: SweepSpec) -> None:
    weak = TrialResult(state=State.PRUNED, kind="weak")
    text = drawn(
        Snapshot(
            counts={"COMPLETE": 2, "PRUNED": 1, "RUNNING": 1},
            running=(running(4, 456, **{"train/loss": 1.23456}),),
            latest=(EndedTrial(3, 12.0, {}, weak, 2.5),),
            best=(1, 0.98765),
            best_params={"adapter.r": 16, "training.learning_rate": 0.00123},
            started=NOW - 125,
        ),
        spec,
    )
    assert "3 of 9 trials   2 complete  1 pruned  1 running" in text
    assert "0001  validation/loss 0.9877" in text
    assert "r 16  learning_rate 0.00123" in text
    assert "step 57, 456/900 samples  train/loss 1.2346  1:05" in text
    assert "0003  pruned after 0:12, validation/loss 2.5000" in text
    assert "2:05" in text


def test_a_kind_other_than_weak_and_an_error_are_told(spec: SweepSpec) -> None:
    bug = TrialResult(state=State.FAIL, kind="bug", error="it broke\nbadly")
    text = drawn(Snapshot(latest=(EndedTrial(3, 1.0, {}, bug, None),)), spec)
    assert "0003  failed (bug) after 0:01, it broke\n" in text


def test_many_trials_leave_room_for_the_rest(spec: SweepSpec) -> None:
    trials = tuple(running(number, 100) for number in range(64))
    text = drawn(Snapshot(running=trials), spec, room=5)
    assert text.count("/900") == 5
    assert "and 59 more" in text


@pytest.mark.parametrize("width", [80, 100, 200])
def test_nothing_is_cut_off(spec: SweepSpec, width: int) -> None:
    trial = running(123, 640, **{"validation/loss": 1.5})
    text = drawn(Snapshot(running=(trial,)), spec, width=width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width


def test_time_left_follows_from_the_work_that_is_left() -> None:
    snapshot = Snapshot(work=2.0, work_left=(6.0, 8.0), started=NOW - 100)
    assert snapshot.seconds_left(NOW) == (300, 400)
    assert Snapshot(work=0.0, work_left=(6.0, 8.0), started=NOW - 100).seconds_left(NOW) is None


@contextmanager
def terminal(folder: Path, *words: str) -> Iterator["Terminal"]:
    """The command on a pseudo-terminal of 100 by 30."""
    primary, secondary = pty.openpty()
    fcntl.ioctl(secondary, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    # Where they are set they count more than the terminal's own size.
    inherited = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *words],
        stdin=secondary,
        stdout=secondary,
        stderr=secondary,
        cwd=folder,
        env={**inherited, "TERM": "xterm-256color"},
        start_new_session=True,
    )
    os.close(secondary)
    try:
        yield Terminal(process, primary)
    finally:
        process.kill()
        process.wait()
        os.close(primary)


class Terminal:
    """What a person at the terminal sees and types."""

    def __init__(self, process: "subprocess.Popen[bytes]", descriptor: int) -> None:
        self.process, self.descriptor, self.text = process, descriptor, ""

    def read_until(self, text: str, timeout_seconds: float = 120.0) -> None:
        """Read until `text` has been shown (or, if empty, until the command has ended)."""
        deadline = time.monotonic() + timeout_seconds
        while not text or text not in self.text:
            assert time.monotonic() < deadline, self.text
            try:
                said = os.read(self.descriptor, 65536).decode(errors="replace")
            except OSError:  # EIO: the other side is closed
                said = ""
            if not said:
                assert not text, self.text
                return
            self.text += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said)


def test_on_a_terminal_progress_is_live_and_the_leaderboard_stays(folder: Path) -> None:
    with terminal(folder, "run", "waves.yaml", SLOW, "resources.max_concurrent=2") as seen:
        seen.read_until("")
        assert seen.process.wait(60) == 0
    for shown in ("about", "2 running", "latest", "/900 samples", "is best", "peft-sweep export"):
        assert shown in seen.text, f"{shown!r} is not in {seen.text[-5000:]}"
    assert "starts: r=" not in seen.text


def test_ctrl_c_on_a_terminal(folder: Path) -> None:
    with terminal(folder, "run", "waves.yaml", SLOW) as seen:
        seen.read_until("step ")
        os.kill(seen.process.pid, 2)
        seen.read_until("")
        assert seen.process.wait(60) == 130
    assert "Interrupted; trials left unfinished" in seen.text
    assert "Traceback" not in seen.text


def test_plain_lines_on_request(folder: Path) -> None:
    with terminal(folder, "run", "waves.yaml", "--plain") as seen:
        seen.read_until("")
        assert seen.process.wait(60) == 0
    assert "starts: r=" in seen.text
