"""`run`: exit codes, what is printed where, and taking a sweep up again."""

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from typer.testing import Result

from tests.support.ray_nodes import HANG_SECONDS

Cli = Callable[..., Result]
Start = Callable[..., "subprocess.Popen[str]"]
SLOW = "resources.engine_options={step_seconds: 0.1}"


def test_a_sweep_that_is_done_exits_with_0(cli: Cli, folder: Path) -> None:
    result = cli("run", "waves.yaml")
    assert result.exit_code == 0
    assert "is best, validation/loss" in result.stdout
    assert "peft-sweep export waves" in result.stdout
    assert (folder / "runs" / "waves" / "leaderboard.json").is_file()


def test_it_says_first_what_it_will_use(cli: Cli, folder: Path) -> None:
    lines = cli("run", "waves.yaml").stderr.splitlines()
    assert lines[0] == "Sweep waves"
    assert "inline, without Ray" in lines[1]
    assert str(folder / "runs" / "waves") in lines[3]
    assert lines[4].split() == ["tracking", "off"]


def test_lines_tell_every_start_rung_and_end(cli: Cli) -> None:
    said = cli("run", "waves.yaml").stderr
    assert said.count(" starts: r=") == 9
    assert said.count("[9 of 9 trials]") == 1
    board = json.loads(cli("leaderboard", "waves", "--json").stdout)
    pruned = sum(row["state"] == "PRUNED" for row in board["rows"])
    assert said.count(", pruned\n") == pruned > 0
    assert said.count(", goes on\n") > 0
    assert said.count(" complete after ") == 9 - pruned


def test_json_is_alone_on_stdout(cli: Cli, folder: Path) -> None:
    result = cli("run", "waves.yaml", "--json")
    record = json.loads(result.stdout)
    assert record["status"] == "complete"
    assert record["folder"] == str(folder / "runs" / "waves")
    assert len(record["leaderboard"]["rows"]) == 9


def test_a_second_run_has_nothing_left_to_do(cli: Cli) -> None:
    first = json.loads(cli("run", "waves.yaml", "--json").stdout)
    again = cli("run", "waves.yaml", "--json")
    assert again.exit_code == 0
    assert json.loads(again.stdout)["leaderboard"] == first["leaderboard"]
    assert "starts" not in again.stderr


def test_a_larger_budget_goes_on_from_the_first(cli: Cli) -> None:
    cli("run", "waves.yaml")
    more = cli("run", "waves.yaml", "budget.n_trials=11")
    assert more.exit_code == 0
    assert more.stderr.count(" starts: ") == 2


def test_trials_are_not_written_over_from_another_database(
    cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli("run", "waves.yaml")
    results = (folder / "runs" / "waves").glob("trials/*/result.json")
    written = {path: path.stat().st_mtime_ns for path in results}
    assert len(written) == 9
    monkeypatch.setenv("PEFT_SWEEPS_STUDY_URL", f"sqlite:///{folder / 'central.db'}")
    resumed = cli("resume", "waves", "budget.n_trials=10")
    assert resumed.exit_code == 0
    assert resumed.stderr.count(" starts: ") == 1, "its study is where it was"
    again = cli("run", "waves.yaml")
    assert again.exit_code == 2
    assert "holds trials of 'waves' that would be written over" in again.stderr
    assert {path: path.stat().st_mtime_ns for path in written} == written


def test_a_sweep_that_failed_exits_with_1_and_names_the_trials(cli: Cli) -> None:
    bugs = "resources.engine_options={faults: {1: bug, 2: data}}"
    result = cli("run", "waves.yaml", bugs, "budget.max_failures=1")
    assert result.exit_code == 1
    assert "The sweep failed: more than 1 trials failed." in result.stderr
    assert "trial 0001 (bug): simulated bug" in result.stderr
    assert "trial 0002 failed (data)" in result.stderr


def test_a_sweep_without_a_complete_trial_failed(cli: Cli) -> None:
    result = cli(
        "run", "waves.yaml", "budget.n_trials=1", "resources.engine_options={faults: {0: oom}}"
    )
    assert result.exit_code == 1
    assert "No trial has completed yet" in result.stdout


def test_an_exhausted_space_is_done(cli: Cli) -> None:
    finite = "space.parameters.training.learning_rate=0.001"
    result = cli("run", "waves.yaml", finite, "budget.n_trials=50")
    assert result.exit_code == 0
    assert "the space is exhausted" in result.stderr
    assert "[8 of 8 trials]" in result.stderr


def test_undelivered_records_are_told_in_one_line(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweeps.run.FLUSH_SECONDS", 0.0)  # do not wait for a server that is gone
    result = cli("run", "waves.yaml", "tracking={uri: 'http://127.0.0.1:9'}", "budget.n_trials=3")
    assert result.exit_code == 0
    assert "could not be delivered to the tracking server" in result.stderr


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_sweep_says_how_to_go_on(
    start: Start, cli: Cli, stop: signal.Signals
) -> None:
    process = start("run", "waves.yaml", SLOW)
    said = wait_for(process, "goes on")
    process.send_signal(stop)
    out, rest = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 130
    assert "Interrupted; trials left unfinished: 0000." in rest
    assert "Traceback" not in said + rest
    assert "interrupted" in out
    shown = json.loads(cli("show", "waves", "0", "--json").stdout)
    assert shown["state"] == "INTERRUPTED"
    again = cli("run", "waves.yaml")
    assert again.exit_code == 0
    assert "trial 0000 starts again, attempt 2" in again.stderr


def test_ray_is_interrupted_in_good_order(start: Start) -> None:
    process = start("run", "waves.yaml", "resources.backend=ray", SLOW)
    wait_for(process, "trial 0000 starts")
    process.send_signal(signal.SIGTERM)
    _, rest = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 130
    assert "Stopping" in rest
    assert "Interrupted; trials left unfinished: 0000." in rest
    assert "Traceback" not in rest


def wait_for(process: "subprocess.Popen[str]", text: str) -> str:
    """Read the process's stderr until a line has `text`; all that was read."""
    assert process.stderr is not None
    said, deadline = "", time.monotonic() + HANG_SECONDS
    while text not in said:
        line = process.stderr.readline()
        assert line, f"it ended without {text!r}: {said}"
        assert time.monotonic() < deadline, said
        said += line
    return said


def test_the_saved_file_is_what_ran_and_runs_again(cli: Cli, folder: Path) -> None:
    overrides = ["budget.n_trials=3", "training.weight_decay=0.5", "storage=here"]
    assert cli("run", "waves.yaml", *overrides).exit_code == 0
    saved = folder / "here" / "waves" / "sweep.yaml"
    before = cli("leaderboard", "waves", "--storage", "here", "--json").stdout
    again = cli("run", saved)
    assert again.exit_code == 0, again.output
    assert cli("leaderboard", "waves", "--storage", "here", "--json").stdout == before
    (folder / "here").rename(folder / "there")
    more = cli("run", folder / "there" / "waves" / "sweep.yaml", "budget.n_trials=4")
    assert more.exit_code == 0, more.output
    assert not (folder / "here").exists()
    assert not (folder / "runs").exists()
    tree = yaml.safe_load((folder / "there" / "waves" / "sweep.yaml").read_text())
    assert (tree["name"], tree["budget"]["n_trials"]) == ("waves", 4)
    assert tree["training"]["weight_decay"] == 0.5
    assert cli("resume", "waves", "budget.n_trials=5", "--storage", "there").exit_code == 0
    text = (folder / "there" / "waves" / "sweep.yaml").read_text()
    assert yaml.safe_load(text)["budget"]["n_trials"] == 5
