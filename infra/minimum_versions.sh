#!/usr/bin/env bash
# Tries the lower bounds of pyproject.toml: installs exactly them (`>=` read as `==`) into an environment
# of their own, and runs the fast tests there. What no bound names is as in infra/constraints.txt.
# `infra/minimum_versions.sh [FOLDER [TESTS ...]]`; half an hour or so on two cores.
set -euo pipefail
cd "$(dirname "$0")/.."
source infra/environment.sh

folder="${1:-.venv-minimum}"
tests=("${@:2}")
python="$(find_python)" || fail "needs Python 3.11 or newer; install it, or set PYTHON=/path/to/python3.11"
"$python" -m venv "$folder"
"$python" - "$folder" <<'PYTHON'
import re
import sys
import tomllib
from pathlib import Path

# Each of these fits one version of a package that has a bound; the pinned one would not do.
TIED = {"botocore", "mlflow-skinny", "mlflow-tracing", "psycopg-binary", "pydantic-core", "s3transfer"}


def name(requirement: str) -> str:
    return re.sub("[-_.]+", "-", re.split(r"[\[<>=!~; ]", requirement)[0]).lower()


project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
extras = project["optional-dependencies"].values()
wanted = [*project["dependencies"], *(one for extra in extras for one in extra)]
wanted = [one.replace(">=", "==") for one in wanted if name(one) != project["name"]]
bound = {name(one) for one in wanted if "==" in one}
pinned = Path("infra/constraints.txt").read_text(encoding="utf-8").split()
rest = [pin for pin in pinned if name(pin) not in bound | TIED]
for path, lines in (("wanted.txt", wanted), ("rest.txt", rest)):
    Path(sys.argv[1], path).write_text("\n".join(lines) + "\n", encoding="utf-8")
PYTHON
pip=("$folder/bin/python" -m pip install --quiet --disable-pip-version-check)
"${pip[@]}" --requirement "$folder/wanted.txt" --constraint "$folder/rest.txt"
"${pip[@]}" --no-deps --editable .

export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
[ ${#tests[@]} -gt 0 ] || tests=(tests/search_spaces tests/peft_jobs tests/sweeps)
"$folder/bin/python" -m pytest --numprocesses 2 --dist loadfile "${tests[@]}"
