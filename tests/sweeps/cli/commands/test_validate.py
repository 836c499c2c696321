"""`validate`: what a sweep would do, or every mistake of its file."""

import json
from collections.abc import Callable
from pathlib import Path

from typer.testing import Result

Cli = Callable[..., Result]


def test_the_plan_has_rows_rungs_and_points(cli: Cli) -> None:
    result = cli("validate", "waves.yaml", "--json")
    plan = json.loads(result.stdout)
    assert result.exit_code == 0
    assert plan["train_rows"] == 1000
    assert plan["rungs"] == [100, 300]
    assert plan["distinct_points"] is None


def test_a_finite_space_is_counted(cli: Cli) -> None:
    finite = "space.parameters.training.learning_rate={choices: [0.001, 0.002, 0.003]}"
    plan = json.loads(cli("validate", "waves.yaml", finite, "--fast", "--json").stdout)
    assert plan["distinct_points"] == 4 * 2 * 3
    assert "train_rows" not in plan


def test_people_read_it_too(cli: Cli) -> None:
    result = cli("validate", "waves.yaml")
    assert "waves.yaml is a valid sweep file." in result.stdout
    assert "successive_halving at 100 and 300 samples" in result.stdout


def test_nothing_is_started(cli: Cli, folder: Path) -> None:
    cli("validate", "waves.yaml")
    assert not (folder / "runs").exists()


def test_every_mistake_is_told_at_once(cli: Cli) -> None:
    result = cli("validate", "waves.yaml", "samplr=tpe", "budget.n_trials=0")
    assert result.exit_code == 2
    assert "did you mean 'sampler'?" in result.stderr
    assert "budget.n_trials" in result.stderr


def test_what_only_a_host_can_tell_is_bad_input(cli: Cli) -> None:
    nothing = "space.parameters.adapter.target_modules=nothing"
    assert cli("validate", "--fast", "waves.yaml", nothing).exit_code == 0
    result = cli("validate", "waves.yaml", nothing)
    assert result.exit_code == 2
    assert "matches no module" in result.stderr
