#!/usr/bin/env bash
# Lint, types, import rules and tests, with the set-up they need. `--all` adds the slow tests,
# `-m gpu` runs those that need a GPU, and no others: all others compare as a CPU rounds.
set -euo pipefail
cd "$(dirname "$0")/.."
source infra/environment.sh
make_environment "test"

marks="not slow and not gpu"
if [ "${1:-}" = "--all" ]; then
    marks="not gpu"
    shift
fi
processes=3 # on two cores: each waits a third of its time, for Ray, for servers, for deaths
if [[ " $* " == *" -m gpu "* ]]; then
    processes=2
elif compgen -G "/dev/nvidia[0-9]*" > /dev/null; then
    export CUDA_VISIBLE_DEVICES=""
fi
export HF_HUB_OFFLINE=1
export OMP_NUM_THREADS=1 # processes test side by side

.venv/bin/ruff check .
.venv/bin/ruff format --check --quiet . || { echo "run: .venv/bin/ruff format ." >&2; exit 1; }
.venv/bin/lint-imports

# Types beside the tests: where it has no cache, mypy takes most of a minute of one core.
types="$(mktemp)"
trap 'rm -f "$types"' EXIT
.venv/bin/mypy >"$types" 2>&1 &
mypy=$!
code=0
.venv/bin/python -m pytest -m "$marks" --numprocesses "$processes" --dist worksteal "$@" || code=$?
wait "$mypy" || code=1
cat "$types"
exit "$code"
