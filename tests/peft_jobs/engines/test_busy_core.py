"""Steps beside a process that keeps one of two cores busy, as an engine's process makes them."""

import json
import os
import subprocess
import sys

import pytest

_MEASURE = """
import json, os, signal, subprocess, sys, time
cores = sorted(os.sched_getaffinity(0))[:2]
os.sched_setaffinity(0, cores)
from peft_jobs.engines import load_engine
load_engine("solo", {"cache_dir": sys.argv[1], "threads": 2})
import torch
torch.set_num_threads(2)
hidden, down = torch.randn(256, 64), [torch.randn(64, 172) for _ in range(8)]
up = [torch.randn(172, 64) for _ in range(8)]

def step():
    value = hidden
    for first, second in zip(down, up):
        value = value + torch.nn.functional.silu(value @ first) @ second
        value = torch.nn.functional.layer_norm(value, (64,))

def steps_per_processor_second(seconds=1.0):
    for _ in range(5):
        step()
    begun, spent, steps = time.perf_counter(), time.process_time(), 0
    while steps < 20 or time.perf_counter() - begun < seconds:
        step()
        steps += 1
    return steps / (time.process_time() - spent)

found = {"quiet": 0.0, "busy": 0.0}
busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
try:
    os.sched_setaffinity(busy.pid, cores[1:])
    for state in ("quiet", "busy") * 3:
        os.kill(busy.pid, signal.SIGCONT if state == "busy" else signal.SIGSTOP)
        found[state] = max(found[state], steps_per_processor_second())
finally:
    busy.kill()
print(json.dumps(found))
"""


def measured(folder: str, **environment: str) -> float:
    """Steps per second of processor beside the busy process, in parts of those without it."""
    given = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    told = subprocess.run(
        [sys.executable, "-c", _MEASURE, folder],
        env={**given, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(told.stdout.splitlines()[-1])
    return float(found["busy"] / found["quiet"])


@pytest.mark.slow
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="this process has one core")
def test_one_busy_core_of_two_leaves_more_than_two_fifths_of_the_steps(tmp_path: object) -> None:
    assert measured(str(tmp_path)) > 0.4
