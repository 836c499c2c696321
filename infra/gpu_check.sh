#!/usr/bin/env bash
# What has to be known of a GPU, in under nine minutes and without a network: versions, the tests
# marked gpu, packed against alone, launches, waits and gaps of a step, and the goal cells of the
# benchmark. Writes gpu_check.json and gpu_check.md. `infra/gpu_check.sh [--out FOLDER] [--dry-run]`.
#
# It takes the environment that is there, PYTHON, .venv or python3, and makes none. Where that lacks
# packages, GPU_CHECK_WHEELS names a folder of wheels that are laid beside it, without their needs.
set -euo pipefail
cd "$(dirname "$0")/.."

python="${PYTHON:-}"
if [ -z "$python" ]; then
    python=python3
    [ ! -x .venv/bin/python ] || python=.venv/bin/python
fi
beside="$PWD:$PWD/infra/benchmarks"
if [ -n "${GPU_CHECK_WHEELS:-}" ]; then
    site="$(mktemp -d)"
    trap 'rm -rf "$site"' EXIT
    "$python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps --no-compile \
        --target "$site" "$GPU_CHECK_WHEELS"/*.whl
    beside="$site:$beside"
fi
PYTHONPATH="$beside${PYTHONPATH:+:$PYTHONPATH}" "$python" infra/benchmarks/gpu_check.py "$@"
