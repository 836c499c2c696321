"""`init`: the files that it writes are valid, and are never written over another."""

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from peft_jobs.spec import TASK_SPECS
from sweeps import load_sweep

Cli = Callable[..., Result]


@pytest.mark.parametrize("task", TASK_SPECS)
def test_the_file_is_valid_and_named_after_its_task(cli: Cli, folder: Path, task: str) -> None:
    result = cli("init", "--task", task, "--out", "new.yaml")
    assert result.exit_code == 0, result.output
    assert load_sweep(folder / "new.yaml").trial.task.type == task
    assert cli("validate", "--fast", "new.yaml").exit_code == 0


def test_the_file_for_causal_lm_runs_as_it_is(cli: Cli) -> None:
    cli("init")
    simulated = ["resources.engine=simulated", "tracking=none"]
    result = cli("run", "sweep.yaml", "--inline", *simulated, "budget.n_trials=3")
    assert result.exit_code == 0, result.output


def test_a_file_that_is_there_stays(cli: Cli, folder: Path) -> None:
    (folder / "sweep.yaml").write_text("mine")
    result = cli("init")
    assert result.exit_code == 2
    assert "is there already" in result.stderr
    assert (folder / "sweep.yaml").read_text() == "mine"
    assert cli("init", "--force").exit_code == 0
    assert (folder / "sweep.yaml").read_text() != "mine"


def test_an_unknown_task_is_answered_with_the_known_ones(cli: Cli) -> None:
    result = cli("init", "--task", "causal")
    assert result.exit_code == 2
    assert "did you mean 'causal_lm'?" in result.stderr
