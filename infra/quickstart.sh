#!/usr/bin/env bash
# From a fresh checkout to an exported adapter: installs the pinned set, runs the demo sweep.
set -euo pipefail
cd "$(dirname "$0")/.."
source infra/environment.sh
make_environment ""

.venv/bin/peft-sweep run sweeps/examples/demo.yaml "$@"
.venv/bin/peft-sweep export demo
echo
echo "Browse it in MLflow:  .venv/bin/peft-sweep ui"
