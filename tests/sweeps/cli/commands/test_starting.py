"""A sweep whose driver loads its base and data is seen, waited for and stopped."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import Result

from sweeps.cli.commands.starting import started
from sweeps.records.layout import SweepFolder
from sweeps.results.recorded_sweep import Starting, Unreadable, open_sweep, open_sweeps
from sweeps.study.database import open_storage
from sweeps.study.lease import RENEW_SECONDS, Lease

Cli = Callable[..., Result]


@pytest.fixture
def lease(cli: Cli, folder: Path) -> Iterator[Lease]:
    """Of a driver that begins to load; with it stands the id in the sweep's folder."""
    place = SweepFolder(folder / "runs", "early")
    place.path.mkdir(parents=True)
    place.id.write_text("early-1")
    lease = Lease(open_storage(place.study_url), "early")
    lease.take()
    yield lease
    lease.release()


def test_it_is_seen_before_its_first_trial(cli: Cli, folder: Path, lease: Lease) -> None:
    standing = json.loads(cli("status", "early", "--json").stdout)
    assert (standing["starting"], standing["driven"]) == (True, True)
    assert set(standing["trials"].values()) == {0}
    assert "none yet: starting" in cli("status", "early").stdout
    assert "the sweep 'early' is starting" in cli("list").stdout
    for command in ("leaderboard", "export"):
        told = cli(command, "early")
        assert told.exit_code == 2
        assert "the sweep 'early' is starting: process" in told.stderr
    (listed,) = open_sweeps(folder / "runs")
    assert isinstance(listed, Unreadable)


def test_without_a_driver_it_is_no_sweep(cli: Cli, folder: Path, lease: Lease) -> None:
    lease.release()
    assert "there is no sweep" in cli("status", "early").stderr
    assert list(open_sweeps(folder / "runs")) == []


def test_watching_waits_for_it(folder: Path, lease: Lease, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    opened = object()

    def open_it() -> object:
        return opened if len(waited) == 3 else open_sweep(folder / "runs", "early")

    assert started(open_it) is opened  # type: ignore[arg-type]
    assert len(waited) == 3


def test_it_is_stopped(cli: Cli, folder: Path, lease: Lease) -> None:
    def drive() -> None:
        while not lease.renew():
            time.sleep(RENEW_SECONDS / 10)
        lease.release()

    driver = threading.Thread(target=drive)
    driver.start()
    stopped = cli("stop", "early")
    driver.join()
    assert stopped.exit_code == 0, stopped.output
    assert "Stopped; no trial was started." in stopped.stderr
    with pytest.raises(Exception, match="there is no sweep") as error:
        open_sweep(folder / "runs", "early")
    assert not isinstance(error.value, Starting)
