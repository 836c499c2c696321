"""Every option of a command in infra/'s files is one that the installed version has."""

import re

import mlflow.cli
import pytest
import ray.scripts.scripts
import typer

from sweeps.cli.app import app
from tests.support.documents import INFRA, documents, found, leaves

PROGRAMS = {
    "ray": ray.scripts.scripts.cli,
    "mlflow": mlflow.cli.cli,
    "peft-sweep": typer.main.get_command(app),
}
COMMANDS = ("ray start", "ray health-check", "mlflow server", "peft-sweep run")


def known(command: str) -> set[str]:
    """What the command's `--help` would list."""
    program, verb = command.split()
    parameters = PROGRAMS[program].commands[verb].params
    return {o for one in parameters for o in (*one.opts, *one.secondary_opts) if o[:2] == "--"}


def used() -> set[tuple[str, str]]:
    """(command, option) of every call; an argument list counts as a call of its words."""
    calls = []
    for path in found("*.sh", "*.sbatch", "*.yaml"):
        text = path.read_text().replace('"$node_script" node ', "ray start ")  # of sweep.sbatch
        calls += re.sub(r"\\\n|\n +(?=--)", " ", text).splitlines()
        if path.suffix == ".yaml":
            lists = {}
            for document in documents(path):
                for name, value in leaves(document):
                    lists.setdefault(name.rpartition(".")[0], []).append(str(value))
            calls += [" ".join(words) for words in lists.values()]
    found_ = set()
    for call in calls:
        for command in COMMANDS:
            _, is_there, rest = call.partition(f"{command} ")
            if is_there and not call.lstrip().startswith("#"):
                rest = re.split(r"[;|>]|(?<!\\)\)| && ", rest)[0]
                found_ |= {(command, o) for o in re.findall(r"(?<![\w-])--[a-z][a-z-]+", rest)}
    return found_


@pytest.mark.parametrize("command", COMMANDS)
def test_options_exist_in_the_installed_version(command: str) -> None:
    options = {option for program, option in used() if program == command}
    assert options
    assert options <= known(command)


def test_the_heads_and_workers_of_every_path_are_looked_at() -> None:
    starts = {option for command, option in used() if command == "ray start"}
    assert {"--head", "--address", "--num-cpus", "--dashboard-host", "--temp-dir"} <= starts
    assert {"--node-ip-address", "--ray-client-server-port"} <= starts  # of sweep.sbatch alone


def test_kuberays_start_parameters_are_options_of_ray_start() -> None:
    names = set()
    for path in (INFRA / "kuberay").glob("*.yaml"):
        for document in documents(path):
            for name, _ in leaves(document):
                if "rayStartParams." in name:
                    names.add(f"--{name.rpartition('.')[2]}")
    assert names
    assert names <= known("ray start")
