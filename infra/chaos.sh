#!/usr/bin/env bash
# Breaks sweeps on purpose, all of tests/chaos, ROUNDS times (default 1), each with another seed;
# then prints a table: fault, times tried, trials lost, seconds until trials went on. Then once the
# faults that need no Ray: clocks, full disks, databases that fail over or say nothing, stores that
# raise, moved storages, foreign studies, enqueued nonsense, metrics that are missing. About 25
# minutes a round on two cores. `infra/chaos.sh ROUNDS [FIRST_SEED]`; exit code 1 if a test failed.
set -euo pipefail
cd "$(dirname "$0")/.."
source infra/environment.sh
make_environment "test"

rounds="${1:-1}"
seed="${2:-$(date +%s)}"
log="$(mktemp -t chaos-XXXXXX.jsonl)"
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 PEFT_SWEEPS_CHAOS_LOG="$log"

failed=0
for ((round = 0; round < rounds; round++)); do
    export PEFT_SWEEPS_CHAOS_SEED=$((seed + round))
    echo "round $((round + 1)) of $rounds, seed $PEFT_SWEEPS_CHAOS_SEED" >&2
    .venv/bin/python -m pytest -q -m "not gpu" tests/chaos || failed=1
done

without_ray="$(mktemp -t chaos-XXXXXX.xml)"
.venv/bin/python -m pytest -q -n2 --junitxml="$without_ray" \
    tests/sweeps/study/test_{lease,unanswered,turned_away}.py tests/sweeps/driver \
    tests/sweeps/records/test_{mirror,ownership}.py tests/sweeps/cli/test_{paths,supervisor}.py \
    tests/sweeps/tracking/test_{artifact_root,lost_outbox,schema}.py || failed=1

.venv/bin/python - "$log" "$without_ray" <<'PYTHON'
import json
import sys
from collections import Counter, defaultdict
from statistics import median
from xml.etree import ElementTree

faults = defaultdict(list)
for line in open(sys.argv[1], encoding="utf-8"):
    entry = json.loads(line)
    faults[entry["fault"]].append(entry)
print("| fault | times | trials lost | recovery, median s | longest s |")
print("|---|---|---|---|---|")
for fault, entries in sorted(faults.items()):
    seconds = [e["recovery_seconds"] for e in entries if e["recovery_seconds"] is not None]
    lost = sum(entry["lost"] for entry in entries)
    times = f"{median(seconds):.1f} | {max(seconds):.1f}" if seconds else "- | -"
    print(f"| {fault} | {len(entries)} | {lost} | {times} |")

outcomes = defaultdict(Counter)
for case in ElementTree.parse(sys.argv[2]).iter("testcase"):
    what = case.get("name").partition("[")[0].removeprefix("test_").replace("_", " ")
    ended = {child.tag for child in case} & {"failure", "error", "skipped"}
    outcomes[what][ended.pop() if ended else "held"] += 1
print("\n| without Ray | outcome |\n|---|---|")
for what, counts in outcomes.items():
    print(f"| {what} | {', '.join(f'{number} {word}' for word, number in counts.items())} |")
PYTHON
exit "$failed"
