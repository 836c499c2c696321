"""The light rooms import in a process that blocks torch, Ray, MLflow and their like."""

import subprocess
import sys
from collections.abc import Sequence

from tests.support.repository import REPOSITORY

HEAVY = ("torch", "transformers", "peft", "bitsandbytes", "datasets", "accelerate", "ray", "mlflow")
PROGRAM = """
import importlib, sys

HEAVY = {heavy!r}

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HEAVY:
            raise ImportError(f"{{name}} must not be imported here")

sys.meta_path.insert(0, Blocker())
for name in {modules!r}:
    importlib.import_module(name)
print(sorted(HEAVY & {{name.partition(".")[0] for name in sys.modules}}))
"""
NEEDS_A_LIBRARY = {
    "log_filters": "filters the lines of torch's libraries, for the rooms that import them",
    "randomness": "torch's generators",
    "dropout_masks": "bits of tensors",
    "base_dropout": "dropout of tensors",
    "site_masks": "masks of tensors",
    "pretrain": "makes the demo's base",
}
"""Modules of light rooms that are heavy, and why."""


def loaded(modules: Sequence[str]) -> str:
    """What is heavy of all that is imported with these modules, as a list's text."""
    assert modules
    program = PROGRAM.format(heavy=set(HEAVY), modules=list(modules))
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=REPOSITORY
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def modules_of(*rooms: str) -> list[str]:
    """Every module of some rooms, at any depth, and every module beside the rooms of a package."""
    found = []
    for room in rooms:
        folder = REPOSITORY / room
        for path in sorted(folder.rglob("*.py") if folder.is_dir() else [folder]):
            name = path.relative_to(REPOSITORY).with_suffix("").as_posix().replace("/", ".")
            if path.stem not in NEEDS_A_LIBRARY and path.stem != "__main__":
                found.append(name.removesuffix(".__init__"))
    return found


def test_the_light_half_of_a_trial_needs_no_torch() -> None:
    beside = [f"peft_jobs/{path.name}" for path in (REPOSITORY / "peft_jobs").glob("*.py")]
    engines = ("peft_jobs/engines/__init__.py", "peft_jobs/engines/simulated.py")
    rooms = ("peft_jobs/spec", "peft_jobs/host", "peft_jobs/storage", "peft_jobs/demo")
    light = modules_of(*rooms, *beside, *engines)
    assert len(light) >= 35
    assert loaded(light) == "[]"


def test_search_spaces_need_no_torch() -> None:
    assert loaded(modules_of("search_spaces")) == "[]"


def test_all_of_a_sweep_but_its_execution_needs_neither_ray_nor_mlflow_nor_torch() -> None:
    outside = ("sweeps.backends.ray", "sweeps.submission", "sweeps.tracking")
    light = [name for name in modules_of("sweeps") if not name.startswith(outside)]
    assert len(light) >= 60
    assert loaded([*light, "sweeps.tracking"]) == "[]"


def test_a_proxy_needs_ray_and_nothing_of_a_driver() -> None:
    """Ray starts one process for each slot: they are many, and each would hold what it imports."""
    program = "import sys, sweeps.backends.ray.proxy; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=REPOSITORY
    )
    assert done.returncode == 0, done.stderr
    loaded = done.stdout.split()
    assert "ray" in loaded
    heavy = ("optuna", "sqlalchemy", "torch", "mlflow", "sweeps.driver", "sweeps.study")
    assert [name for name in loaded if name.startswith((*heavy, "peft_jobs.spec"))] == []
