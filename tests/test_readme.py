"""The README's blocks do what they say: each is loaded or run, in a folder like the checkout's.

| block | what is done with it |
|---|---|
| `yaml` | loads as a sweep file; local data files that it names are there, and empty |
| `bash` | is run, line by line; a server (`peft-sweep ui`) until it answers |
| `python` | all of them are run as one program, after the commands |
| `sh` | the set-up, which would run these tests: its scripts are there |
| `text` | is not run |

Each command is a process of its own that need not import torch: see `tests.support.fork_server`.
The demo's budget is made small, and so is every `budget.n_trials=` and `--epochs` of the README.
What cannot run on one machine is a `text` block.
"""

import contextlib
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from peft_jobs.spec import file_format
from sweeps import load_sweep
from tests.support.fork_server import OF_A_DRIVER, OF_A_TRIAL, fork_server

ROOT = Path(__file__).parents[1]
DEMO = Path("sweeps", "examples", "demo.yaml")
BUDGET = {"n_trials": 2, "max_samples": 32, "num_rungs": 1}
MORE_TRIALS = 3
FEW_EPOCHS = 0.02
MAX_SECONDS = 600  # of a block, on a machine that does other things too
SERVER = re.compile(r"peft-sweep ui\b")
PYTHONS = {"peft-sweep": ["-m", "sweeps.cli"], "python": []}
"""What each command of the README gives to Python before its own words."""


@dataclass(frozen=True)
class Block:
    """A fenced block, the line of the README where it opens, and what stands in it."""

    tag: str
    line: int
    text: str


def read_blocks() -> list[Block]:
    source = (ROOT / "README.md").read_text(encoding="utf-8")
    return [
        Block(match[1], source.count("\n", 0, match.start()) + 1, match[2])
        for match in re.finditer(r"^```(.*)\n((?:.*\n)*?)```$", source, re.MULTILINE)
    ]


BLOCKS = read_blocks()


def tagged(tag: str) -> list[Block]:
    found = [block for block in BLOCKS if block.tag == tag]
    assert found, f"no {tag} block in README.md"
    return found


def small(text: str) -> str:
    """The block with every larger number of trials made `MORE_TRIALS`."""
    text = re.sub(r"--epochs \d+", f"--epochs {FEW_EPOCHS}", text)
    return re.sub(r"\bbudget\.n_trials=\d+", f"budget.n_trials={MORE_TRIALS}", text)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages, as in the root of the checkout; the demo is small, and without Ray."""
    folder = tmp_path_factory.mktemp("readme")
    for package in ("search_spaces", "peft_jobs", "sweeps"):
        leave_out = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, folder / package, ignore=leave_out)
    sweep = yaml.safe_load((folder / DEMO).read_text(encoding="utf-8"))
    sweep["budget"].update(BUDGET)
    sweep["data"]["validation_subset"] = sweep["training"]["per_device_train_batch_size"] = 4
    sweep["resources"] = {"backend": "inline"}
    (folder / DEMO).write_text(yaml.safe_dump(sweep), encoding="utf-8")
    return folder


def environment() -> dict[str, str]:
    """This process's, with its Python's commands first and no hint of another study or server."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith("PEFT_SWEEPS_")
    }
    commands = Path(sys.executable).parent
    kept.pop("MLFLOW_TRACKING_URI", None)
    return kept | {"PATH": f"{commands}:{kept['PATH']}", "OMP_NUM_THREADS": "1"}


def run(arguments: list[str], folder: Path) -> None:
    """Run a Python with these arguments."""
    server = fork_server(OF_A_DRIVER + OF_A_TRIAL)
    output = folder / "output.txt"
    code = server.start(arguments, output, environment(), folder).wait(MAX_SECONDS)
    assert code == 0, output.read_text()


def serve(command: list[str], folder: Path) -> None:
    """Start a server on a free port, wait until its page is there, end it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [*command, "--port", str(port)],
        cwd=folder,
        env=environment(),
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + MAX_SECONDS
        while True:
            assert process.poll() is None, f"{command}: exit code {process.returncode}"
            assert time.monotonic() < deadline, f"{command}: no answer"
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as page:
                    assert b"MLflow" in page.read()
                return
            except OSError:
                time.sleep(0.2)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(20)


def test_every_block_is_of_a_kind_that_is_known() -> None:
    assert {block.tag for block in BLOCKS} <= {"yaml", "bash", "python", "sh", "text"}


def test_the_scripts_of_the_set_up_are_there() -> None:
    commands = [line for block in tagged("sh") for line in block.text.splitlines()]
    scripts = [shlex.split(command, comments=True) for command in commands]
    assert scripts == [["bash", "infra/quickstart.sh"], ["bash", "infra/test.sh"]]
    for _, script in scripts:
        assert (ROOT / script).is_file()


@pytest.mark.parametrize("block", tagged("yaml"), ids=lambda block: f"line {block.line}")
def test_a_sweep_file_loads(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for source in yaml.safe_load(block.text)["data"].values():
        if isinstance(source, str) and file_format(source):
            (tmp_path / source).touch()
    path = tmp_path / "sweep.yaml"
    path.write_text(block.text, encoding="utf-8")
    assert load_sweep(path).budget.n_trials > 1


def test_the_commands_are_installed() -> None:
    lines = [line for block in tagged("bash") for line in block.text.splitlines()]
    commands = {shlex.split(line)[0] for line in lines}
    assert commands == set(PYTHONS)
    for command in commands:
        assert shutil.which(command, path=environment()["PATH"])


@pytest.mark.timeout(2 * MAX_SECONDS)
def test_the_commands_run(folder: Path) -> None:
    for block in tagged("bash"):
        for line in small(block.text).splitlines():
            command, *words = shlex.split(line, comments=True)
            if SERVER.match(line):
                serve([command, *words], folder)
            else:
                run([*PYTHONS[command], *words], folder)


@pytest.mark.timeout(2 * MAX_SECONDS)
def test_the_program_runs(folder: Path) -> None:
    program = "\n".join(small(block.text) for block in tagged("python"))
    run(["-c", program], folder)
