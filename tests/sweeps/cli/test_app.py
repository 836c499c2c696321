"""The command line as a whole: help, version, and what it does not import."""

import importlib.metadata
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import Result

from sweeps.cli.app import app

Cli = Callable[..., Result]
COMMANDS = sorted(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
HEAVY = ("torch", "ray", "mlflow", "transformers", "datasets", "sklearn")
SPY = """
import sys
from sweeps.cli.app import app
for line in sys.argv[1:]:
    try:
        app(line.split())
    except SystemExit as exit:
        assert exit.code == 0, line
print(*sys.modules, file=sys.stderr)
"""


def modules_after(*lines: str, cwd: Path | None = None) -> set[str]:
    """The modules that a process has imported after these command lines."""
    command = [sys.executable, "-c", SPY, *lines]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.split())


def test_the_commands_are_those_of_the_readme() -> None:
    expected = """init presets data validate plan run confirm submit logs resume retry status watch
        stop leaderboard report show list export compose train ui doctor schema delete gc archive
        restore"""
    assert sorted(expected.split()) == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(cli: Cli, command: str) -> None:
    result = cli(command, "--help")
    assert result.exit_code == 0
    assert f"peft-sweep {command}" in result.output.partition("Example")[2]


def test_version(cli: Cli) -> None:
    result = cli("--version")
    assert result.output.split() == ["peft-sweep", importlib.metadata.version("peft-sweeps")]


def test_the_script_finds_functions_in_the_current_folder_behind_what_is_installed(
    folder: Path,
) -> None:
    (folder / "draws.py").write_text("def draw(trial):\n    return {'adapter.r': 4}\n")
    (folder / "yaml.py").write_text("raise RuntimeError('not this one')\n")
    script = Path(sys.executable).with_name("peft-sweep")
    command = [script, "validate", "waves.yaml", "--fast", "space={function: 'draws:draw'}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "draws:draw" in done.stdout


def test_help_comes_at_once() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    modules = modules_after("--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "sweeps.cli.app" in modules
    assert not modules & set(HEAVY)
    assert after.ru_utime - before.ru_utime < 2  # half a second on an idle machine


def test_commands_import_no_torch_ray_or_mlflow(ended: Cli, folder: Path) -> None:
    modules = modules_after(
        "init --out new.yaml",
        "validate --fast waves.yaml",
        "run waves.yaml name=ripples budget.n_trials=3",
        "leaderboard waves",
        "show waves 0",
        "list",
        "schema",
        cwd=folder,
    )
    assert "sweeps.run" in modules
    assert not modules & set(HEAVY)
