"""`status`, `watch`, `stop`, `resume` and `retry`, from other terminals than the driver's."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from tests.support.ray_nodes import HANG_SECONDS

Cli = Callable[..., Result]
Start = Callable[..., "subprocess.Popen[str]"]
SLOW = "resources.engine_options={step_seconds: 0.02}"
ENDLESS = "resources.engine_options={step_seconds: 0.3}"
"""Half a minute a trial: it runs until somebody ends it, however late that is on a busy machine."""


def status(cli: Cli) -> dict[str, Any]:
    result = cli("status", "waves", "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def wait_until(cli: Cli, condition: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    deadline = time.monotonic() + HANG_SECONDS
    while time.monotonic() < deadline:
        if Path("runs/waves/sweep.json").exists() and condition(standing := status(cli)):
            return standing
        time.sleep(0.2)
    raise TimeoutError(status(cli))


def test_status_of_a_sweep_that_has_ended(ended: Cli) -> None:
    standing = status(ended)
    assert standing["driven"] is False
    assert standing["trials"]["FAIL"] == 1
    assert sum(standing["trials"].values()) == standing["n_trials"] == 9
    said = ended("status", "waves").stdout
    assert said.splitlines()[0].split() == ["driver", "nobody"]
    assert "resume" not in said


def test_a_running_sweep_is_seen_and_stopped_from_elsewhere(cli: Cli, start: Start) -> None:
    process = start("run", "waves.yaml", ENDLESS)
    standing = wait_until(cli, lambda s: s["running"])
    assert standing["driven"]
    assert standing["driver"]["pid"] == process.pid
    second = cli("run", "waves.yaml")
    assert second.exit_code == 2
    assert f"is being driven by process {process.pid}" in second.stderr

    stopped = cli("stop", "waves")
    assert stopped.exit_code == 0
    assert "Stopped; trials left unfinished: 00" in stopped.stderr
    said = process.communicate(timeout=HANG_SECONDS)[1]
    assert process.returncode == 130
    assert "Interrupted; trials left unfinished: 00" in said
    standing = status(cli)
    assert not standing["driven"]
    assert len(standing["interrupted"]) == 1
    assert "peft-sweep resume waves" in cli("status", "waves").stdout
    again = cli("stop", "waves")
    assert again.exit_code == 2
    assert "nobody drives the sweep 'waves'" in again.stderr

    resumed = cli("resume", "waves", "--json", "resources.engine_options={}")
    assert resumed.exit_code == 0, resumed.output
    assert len(json.loads(resumed.stdout)["leaderboard"]["rows"]) == 9
    assert status(cli)["interrupted"] == []


def test_a_killed_driver_is_known_to_be_dead(cli: Cli, start: Start) -> None:
    process = start("run", "waves.yaml", ENDLESS)
    wait_until(cli, lambda s: s["running"])
    process.send_signal(signal.SIGKILL)
    process.wait()
    said = cli("status", "waves").stdout
    assert f"nobody; process {process.pid} on " in said
    assert "has died" in said
    assert status(cli)["interrupted"] == [0]


def test_watch_follows_a_sweep_to_its_end(cli: Cli, start: Start) -> None:
    process = start("run", "waves.yaml", SLOW, "budget.n_trials=4")
    wait_until(cli, lambda s: s["running"])
    watched = cli("watch", "waves")
    assert watched.exit_code == 0, watched.output
    assert watched.stderr.count(" pruned after ") + watched.stderr.count(" complete after ") == 4
    assert "4 of 4 trials" in watched.stdout
    assert process.wait(HANG_SECONDS) == 0
    assert cli("watch", "waves").exit_code == 2


def test_resume_takes_a_larger_budget_and_refuses_another_sweep(cli: Cli) -> None:
    assert cli("run", "waves.yaml").exit_code == 0
    more = cli("resume", "waves", "budget.n_trials=11")
    assert more.exit_code == 0
    assert more.stderr.count(" starts: ") == 2
    other = cli("resume", "waves", "seed=2")
    assert other.exit_code == 2
    assert "seed: was 1, is 2" in other.stderr
    assert cli("resume", "wave").exit_code == 2


def test_failed_trials_are_run_again_under_new_numbers(cli: Cli, folder: Path) -> None:
    faulty = "resources.engine_options={faults: {2: bug, 4: data}}"
    first = cli("run", "waves.yaml", faulty, "pruner=none")
    assert first.exit_code == 0
    assert "2 trials failed; `peft-sweep retry waves --failed" in first.stderr
    before = json.loads(cli("leaderboard", "waves", "--json").stdout)["rows"]
    assert cli("retry", "waves").exit_code == 2

    again = cli("retry", "waves", "--failed", "resources.engine_options={}")
    assert again.exit_code == 0, again.output
    assert again.stderr.count(" starts: ") == 2
    rows = json.loads(cli("leaderboard", "waves", "--json").stdout)["rows"]
    assert len(rows) == len(before) == 9
    assert {row["state"] for row in rows} == {"COMPLETE"}
    wanted = [row["params"] for row in before if row["state"] == "FAIL"]
    new = {row["number"] for row in rows} - {row["number"] for row in before}
    assert len(new) == 2
    assert [row["params"] for row in rows if row["number"] in new and row["params"] in wanted]
    assert (folder / "runs" / "waves" / "trials" / "0002" / "result.json").exists()
    assert cli("retry", "waves", "--failed").stderr.count(" starts: ") == 0


@pytest.mark.slow
def test_a_supervised_sweep_survives_its_driver_and_ends_as_one(cli: Cli, start: Start) -> None:
    process = start("run", "waves.yaml", SLOW, "resources.backend=ray")
    standing = wait_until(cli, lambda s: s["running"])
    driver = standing["driver"]["pid"]
    assert driver != process.pid
    os.kill(driver, signal.SIGKILL)
    out, said = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 0
    assert "was killed by SIGKILL" in said
    assert "is best, validation/loss" in out
    assert status(cli)["interrupted"] == []
