#!/usr/bin/env bash
# Runs tests/peft_jobs as other machines would round: with each of ATen's kinds of kernels that this
# processor has, with one thread and with two, beside a process that never rests. What is claimed may
# hang neither on rounding nor on speed. For the night: 6 runs of 15 to 30 minutes on two cores.
# `infra/numerics.sh [OPTIONS OF PYTEST]`; exit code 1 if a test failed in any of the runs.
set -euo pipefail
cd "$(dirname "$0")/.."
source infra/environment.sh
make_environment "test"

export HF_HUB_OFFLINE=1
export OMP_WAIT_POLICY=passive # threads that spin until a neighbour rests take minutes to meet
# ATen takes what it is told, and dies of an instruction that the processor lacks.
best="$(.venv/bin/python -c 'import torch; print(torch.backends.cpu.get_cpu_capability().lower())')"

while :; do :; done &
busy=$!
trap 'kill "$busy" 2>/dev/null' EXIT

failed=()
for capability in default avx2 avx512; do
    for threads in 1 2; do
        echo "ATEN_CPU_CAPABILITY=$capability, threads: $threads" >&2
        ATEN_CPU_CAPABILITY="$capability" OMP_NUM_THREADS="$threads" PEFT_SWEEPS_TEST_THREADS="$threads" \
            .venv/bin/python -m pytest -q -m "not slow and not gpu" tests/peft_jobs "$@" ||
            failed+=("$capability/$threads")
    done
    if [ "$capability" = "$best" ]; then
        break
    fi
done

echo "kinds of kernels up to $best; failed: ${failed[*]:-none}" >&2
[ "${#failed[@]}" -eq 0 ]
