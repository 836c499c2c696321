"""An installed wheel works without the checkout: code, package data, types, command.

The other tests run the editable install, which finds every file of the checkout whether or not
`[tool.setuptools.package-data]` names it.
"""

import json
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.repository import REPOSITORY

PACKAGES = ("search_spaces", "peft_jobs", "sweeps")
FOLDERS = (*PACKAGES, "tests", "infra")
PROGRAM = """
import json, importlib.metadata, pathlib
import peft_jobs, peft_jobs.demo, search_spaces, sweeps
from search_spaces import PRESETS, load_space

for preset in PRESETS:
    load_space({"preset": preset})
print(json.dumps({
    "folders": [module.__path__[0] for module in (search_spaces, peft_jobs, sweeps)],
    "version": importlib.metadata.version("peft-sweeps"),
    "presets": len(PRESETS),
    "base": str(peft_jobs.demo.BASE),
}))
"""


@dataclass(frozen=True)
class Installed:
    """The wheel, and the environment it is installed in (the dependencies are borrowed)."""

    wheel: Path
    bin: Path
    packages: Path

    def run(self, *words: str, cwd: Path) -> str:
        """What the environment's program prints; nothing of this process's Python is left to it."""
        environment = {"PATH": f"{self.bin}:/usr/bin:/bin", "HOME": str(cwd)}
        environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [str(self.bin / words[0]), *words[1:]],
            cwd=cwd,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("wheel")
    tree = folder / "tree"  # setuptools writes build/ and *.egg-info/ into it
    for name in FOLDERS:
        leave_out = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / name, tree / name, ignore=leave_out)
    for path in REPOSITORY.iterdir():
        if path.is_file():
            shutil.copy(path, tree)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = ["wheel", "--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir", folder]
    subprocess.run([*pip, *build, tree], check=True)
    [wheel] = folder.glob("*.whl")

    fresh = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", fresh], check=True)
    paths = {"base": str(fresh), "platbase": str(fresh)}
    packages = Path(sysconfig.get_path("purelib", "venv", paths))
    # A path in a .pth file is searched last, and the .pth files there, the editable install's
    # among them, are not read.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    target = ["--python", str(fresh), "install", "--no-index", "--no-deps", "--ignore-installed"]
    subprocess.run([*pip, *target, wheel], check=True)
    return Installed(wheel, Path(sysconfig.get_path("scripts", "venv", paths)), packages)


def test_the_wheel_holds_the_packages_whole_and_nothing_else(installed: Installed) -> None:
    wanted = {
        str(path.relative_to(REPOSITORY))
        for package in PACKAGES
        for path in (REPOSITORY / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {f"{package}/py.typed" for package in PACKAGES} < wanted
    with zipfile.ZipFile(installed.wheel) as wheel:
        held = wheel.namelist()
    assert {name for name in held if ".dist-info/" not in name} == wanted


def test_the_demo_sweep_runs_from_the_wheel_in_an_empty_folder(
    installed: Installed, tmp_path: Path
) -> None:
    found = json.loads(installed.run("python", "-c", PROGRAM, cwd=tmp_path))
    assert found["folders"] == [str(installed.packages / package) for package in PACKAGES]
    assert found["presets"] >= 20
    assert Path(found["base"]).is_relative_to(installed.packages)
    assert "run" in installed.run("peft-sweep", "--help", cwd=tmp_path)
    assert found["version"] in installed.run("peft-sweep", "--version", cwd=tmp_path)
    installed.run("peft-sweep", "init", cwd=tmp_path)
    installed.run("peft-sweep", "validate", "--fast", "sweep.yaml", cwd=tmp_path)
    demo = str(installed.packages / "sweeps" / "examples" / "demo.yaml")
    small = ["budget.n_trials=1", "budget.max_samples=32", "tracking=none"]
    installed.run("peft-sweep", "run", demo, *small, "--inline", cwd=tmp_path)
    board = json.loads(installed.run("peft-sweep", "leaderboard", "demo", "--json", cwd=tmp_path))
    assert board
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs", "sweep.yaml"]
