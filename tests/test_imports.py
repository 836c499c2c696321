"""The light halves import without torch, Ray, MLflow and their like."""

import subprocess
import sys

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


def loaded(*modules: str) -> str:
    program = PROGRAM.format(heavy=set(HEAVY), modules=modules)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_light_half_of_a_trial_needs_no_torch() -> None:
    light = ("engines", "errors", "files", "host", "job", "mistakes", "provenance", "result")
    assert loaded(*(f"peft_jobs.{name}" for name in (*light, "simulated", "spec"))) == "[]"


def test_search_spaces_need_no_torch() -> None:
    assert loaded("search_spaces") == "[]"


def test_all_of_a_sweep_but_its_execution_needs_neither_ray_nor_mlflow_nor_torch() -> None:
    light = ("export", "inline", "leaderboard", "loading", "recorded", "run", "study", "tracking")
    assert loaded("sweeps.cli", *(f"sweeps.{name}" for name in light)) == "[]"
