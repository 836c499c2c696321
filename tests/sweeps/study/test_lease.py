"""One driver per sweep: who is refused, who succeeds whom, and who learns that it has lost."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import optuna
import psutil
import pytest
import sqlalchemy as sa

from peft_jobs import SpecError
from sweeps.errors import LeaseLost
from sweeps.study import lease as leases
from sweeps.study.database import open_storage
from sweeps.study.lease import Lease, read_lease, request_stop

HOLD = """
import sys, time
from sweeps.study.database import open_storage
from sweeps.study.lease import Lease
Lease(open_storage(sys.argv[1]), "waves").take()
print("taken", flush=True)
time.sleep(60)
"""


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'optuna.db'}"


@pytest.fixture
def storage(url: str) -> optuna.storages.RDBStorage:
    return open_storage(url)


def edit(storage: optuna.storages.RDBStorage, **values: object) -> None:
    """Change the row behind everybody's back."""
    sets = ", ".join(f"{name} = :{name}" for name in values)
    with storage.engine.begin() as connection:
        connection.execute(sa.text(f"UPDATE peft_sweeps_lease SET {sets}"), values)


def test_a_second_driver_is_told_who_the_first_one_is(
    storage: optuna.storages.RDBStorage, url: str
) -> None:
    Lease(storage, "waves").take()
    with pytest.raises(SpecError, match=f"is being driven by process {os.getpid()} on "):
        Lease(open_storage(url), "waves").take()
    Lease(storage, "other").take()


def test_a_released_lease_is_free_at_once(storage: optuna.storages.RDBStorage) -> None:
    first = Lease(storage, "waves")
    first.take()
    first.release()
    assert read_lease(storage.engine, "waves") is None
    Lease(storage, "waves").take()


def test_a_killed_driver_of_this_machine_is_succeeded_at_once(
    storage: optuna.storages.RDBStorage, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, url], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "taken\n"
    with pytest.raises(SpecError, match=f"process {holder.pid} on "):
        Lease(storage, "waves").take()
    holder.kill()
    holder.wait()
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    Lease(storage, "waves").take()
    assert pauses == []


def test_a_process_that_got_the_dead_drivers_number_is_not_the_driver(
    storage: optuna.storages.RDBStorage,
) -> None:
    Lease(storage, "waves").take()
    edit(storage, process_started=psutil.Process().create_time() - 100)
    holder = read_lease(storage.engine, "waves")
    assert holder is not None
    assert holder.is_gone


def test_setting_the_clock_does_not_kill_the_driver(
    storage: optuna.storages.RDBStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    Lease(storage, "waves").take()
    before, later = psutil.Process().create_time(), psutil.boot_time() + 3600
    monkeypatch.setattr("psutil._psplatform.boot_time", lambda: later)
    assert psutil.Process().create_time() > before + 3000, "so psutil has it now"
    holder = read_lease(storage.engine, "waves")
    assert holder is not None
    assert not holder.is_gone


class Clock:
    """A machine's own: what sleeps moves it, and something may happen at each second."""

    def __init__(self, happens: Callable[[float], object] = lambda _: None) -> None:
        self.now, self._happens = 1e6, happens
        self.slept = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept += seconds
        self._happens(self.slept)


@pytest.mark.parametrize("ahead", [-3600.0, -90.0, 0.0, 90.0, 3600.0])
def test_a_living_driver_of_another_machine_keeps_its_sweep_whatever_the_clocks_say(
    storage: optuna.storages.RDBStorage, ahead: float
) -> None:
    Lease(storage, "waves").take()
    edit(storage, host="elsewhere/boot/pid", renewed=time.time() - ahead)

    def renews(slept: float) -> None:
        if slept % 3 == 0:
            edit(storage, renewed=time.time() - ahead + slept)

    clock = Clock(renews)
    with pytest.raises(SpecError, match="on elsewhere;"):
        Lease(storage, "waves", clock, clock.sleep).take()
    assert clock.slept == 3


@pytest.mark.parametrize("ahead", [-3600.0, 0.0, 3600.0])
def test_a_silent_driver_of_another_machine_keeps_the_sweep_until_its_lease_runs_out(
    storage: optuna.storages.RDBStorage, ahead: float, caplog: pytest.LogCaptureFixture
) -> None:
    first = Lease(storage, "waves")
    first.take()
    edit(storage, host="elsewhere/boot/pid", renewed=time.time() - ahead)
    clock, beats = Clock(), []
    Lease(storage, "waves", clock, clock.sleep).take(lambda: beats.append(clock.now))
    assert leases.TTL_SECONDS < clock.slept <= leases.TTL_SECONDS + 2
    assert len(beats) == clock.slept, "it beats while it waits"
    assert "waiting for process" in caplog.text

    first._looked -= leases.RENEW_SECONDS
    with pytest.raises(LeaseLost, match="another driver has taken over the sweep 'waves'"):
        first.renew()
    first.release()
    assert read_lease(storage.engine, "waves") is not None, "it is the other's"


def test_a_clock_that_is_set_back_keeps_no_driver_from_renewing(
    storage: optuna.storages.RDBStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    driver = Lease(storage, "waves", clock, clock.sleep)
    driver.take()
    before = read_lease(storage.engine, "waves")
    assert before is not None
    wall = time.time
    monkeypatch.setattr(time, "time", lambda: wall() - 3600.0)
    clock.sleep(leases.RENEW_SECONDS)
    request_stop(storage.engine, before)
    assert driver.renew() is True
    after = read_lease(storage.engine, "waves")
    assert after is not None
    assert after.renewed != before.renewed


def test_the_wish_to_stop_reaches_the_driver_that_has_the_lease(
    storage: optuna.storages.RDBStorage, url: str
) -> None:
    driver = Lease(storage, "waves")
    driver.take()
    driver._looked -= leases.RENEW_SECONDS
    assert driver.renew() is False
    elsewhere = open_storage(url)
    holder = read_lease(elsewhere.engine, "waves")
    assert holder is not None
    request_stop(elsewhere.engine, holder)
    driver._looked -= leases.RENEW_SECONDS
    assert driver.renew() is True
    driver.release()
    following = Lease(storage, "waves")
    following.take()
    following._looked -= leases.RENEW_SECONDS
    assert following.renew() is False


def test_a_database_without_leases_has_no_driver(storage: optuna.storages.RDBStorage) -> None:
    assert read_lease(storage.engine, "waves") is None
