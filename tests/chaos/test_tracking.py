"""MLflow is away: from the start, in the middle, at the end, or it does not answer."""

import signal
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from sweeps.tracking import MlflowTracker, deliver_pending
from tests.support.breaking import Broken
from tests.support.left_behind import TrialRecord
from tests.support.mlflow_server import Gate, Server
from tests.support.ray_nodes import free_port, wait_for

Sweep = Callable[..., Broken]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server that the test starts and kills as it likes."""
    (tmp_path / "server").mkdir()
    server = Server(tmp_path / "server", free_port())
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def tracked(one_at_a_time: Sweep, server: Server) -> Broken:
    """A sweep that is tracked by `server`."""
    sweep = one_at_a_time(tracking={"uri": server.url})
    sweep.mlflow = server.storage / "mlflow.db"
    return sweep


def waiting(sweep: Broken) -> int:
    """Operations in the outbox."""
    path = sweep.folder / "tracking.db"
    if not path.exists():
        return 0
    with closing(sqlite3.connect(path, timeout=20)) as outbox:
        return int(outbox.execute("SELECT COUNT(*) FROM op").fetchone()[0])


def slowly(sweep: Broken) -> Broken:
    sweep.tree["resources"]["engine_options"]["step_seconds"] = 0.02
    return sweep


def deliver(sweep: Broken, server: Server) -> None:
    """As the next launch would, without one."""
    with closing(sqlite3.connect(sweep.storage / "optuna.db")) as database:
        query = "SELECT value_json FROM study_user_attributes WHERE key = 'key'"
        key = database.execute(query).fetchone()[0].strip('"')
    path, name = sweep.folder / "tracking.db", sweep.tree["name"]
    assert deliver_pending(path, server.url, "peft-sweeps", name, sweep_key=key) == 0


def test_what_a_dead_server_missed_is_delivered_by_the_next_launch(
    one_at_a_time: Sweep, server: Server, unbroken: dict[int, TrialRecord]
) -> None:
    server.start()
    gate = Gate(server.port)
    tracked = slowly(one_at_a_time(tracking={"uri": gate.url}))
    tracked.mlflow = server.storage / "mlflow.db"
    driver = tracked.launch(flush_seconds=1)  # down from the start
    wait_for(driver.reported)
    gate.open()
    wait_for(lambda: tracked.read()[0].runs)
    server.stop(signal.SIGKILL)  # and at the end
    tracked.finish(driver)
    assert waiting(tracked) > 0
    server.start()
    died = time.monotonic()
    tracked.finish(tracked.launch())
    tracked.note("MLflow server, kill -9 in the middle", time.monotonic() - died)
    tracked.check_same(unbroken)


@pytest.mark.slow
def test_a_server_that_is_down_for_the_whole_sweep_misses_nothing(
    tracked: Broken, server: Server, unbroken: dict[int, TrialRecord]
) -> None:
    tracked.finish(tracked.launch(flush_seconds=1))
    assert waiting(tracked) > 8 * 4
    server.start()
    began = time.monotonic()
    deliver(tracked, server)
    tracked.note("MLflow server, down from the start to the end", time.monotonic() - began)
    tracked.check_same(unbroken)


@pytest.mark.slow
def test_a_server_that_is_killed_in_the_middle_and_restarted_misses_nothing(
    tracked: Broken, server: Server, unbroken: dict[int, TrialRecord]
) -> None:
    server.start()
    driver = slowly(tracked).launch()
    wait_for(driver.reported)
    wait_for(lambda: any(record.runs for record in tracked.read().values()))
    server.stop(signal.SIGKILL)
    count = waiting(tracked)
    wait_for(lambda: waiting(tracked) > count)
    server.start()
    back = time.monotonic()
    wait_for(lambda: waiting(tracked) == 0)
    tracked.note("MLflow server, kill -9 and restart", time.monotonic() - back)
    tracked.finish(driver)
    tracked.check_same(unbroken)


@pytest.mark.parametrize("answer", ["refuses", "hangs"])
def test_no_call_is_slowed_by_a_server_that_does_not_answer(
    server: Server, tmp_path: Path, answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.create_server(("127.0.0.1", server.port)) as listener:
        if answer == "refuses":
            listener.close()
        check_calls(
            MlflowTracker(tmp_path / "tracking.db", server.url, "slow", "sweep"), monkeypatch
        )


def check_calls(tracker: MlflowTracker, monkeypatch: pytest.MonkeyPatch) -> None:
    """500 reports are rows in a local file: who reports asks no server, and waits for no thread."""
    asking: set[threading.Thread] = set()
    pausing: set[threading.Thread] = set()
    connect, wait = socket.socket.connect, threading.Condition.wait

    def connecting(one: socket.socket, address: Any) -> None:
        asking.add(threading.current_thread())
        connect(one, address)

    def noting(condition: threading.Condition, timeout: float | None = None) -> bool:
        pausing.add(threading.current_thread())
        return wait(condition, timeout)

    with monkeypatch.context() as patched:
        patched.setattr(socket.socket, "connect", connecting)
        patched.setattr(threading.Condition, "wait", noting)
        tracker.sweep_started({}, {}, [])
        for step in range(500):
            tracker.trial_progress(0, {"train/loss": 1.0 / (step + 1)}, step, step)
        assert threading.current_thread() not in pausing
        wait_for(lambda: asking and pausing)  # the thread that delivers does both
        assert threading.current_thread() not in asking
    assert tracker.close(0.1) == 501
