"""The Slurm script, run for real; `srun` and `scontrol` alone are stand-ins, on this machine."""

import contextlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.documents import INFRA
from tests.support.ray_nodes import wait_for

SRUN = """#!/bin/bash
echo "$*" >>"$SLURM_SUBMIT_DIR/srun.log"
while [[ "$1" == --* ]]; do shift; done
SLURM_PROCID=0 exec "$@"
"""
SCONTROL = '#!/bin/bash\ntr "," "\\n" <<<"$3"\n'
SWEEP = """
model: demo
quantization: nf4
task: {type: causal_lm, prompt: "{record} ", response: "{sentence}"}
data: {train: demo, validation: demo}
space: {parameters: {training.learning_rate: {low: 1.0e-4, high: 1.0e-2, log: true}}}
budget: {n_trials: 6, max_samples: 900}
resources: {engine: simulated, engine_options: {step_seconds: 0.01}}
tracking: none
"""


@pytest.fixture
def job(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """A Slurm job of two nodes that runs the sweep; its output is in `job.log`."""
    for name, text in {"srun": SRUN, "scontrol": SCONTROL}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "waves.yaml").write_text(SWEEP)
    hidden = ("RAY_", "SLURM_", "CUDA_VISIBLE")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(hidden)}
    environment |= {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "VENV": str(Path(sys.executable).parents[1]),
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_ID": str(random.randrange(400)),
        "SLURM_JOB_NODELIST": "first,second",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_PER_TASK": "1",
    }
    with (tmp_path / "job.log").open("w") as log:
        process = subprocess.Popen(
            ["bash", str(INFRA / "slurm" / "sweep.sbatch"), "waves.yaml"],
            env=environment,
            stdout=log,
            stderr=log,
            text=True,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        for left in descendants(process):
            with contextlib.suppress(psutil.NoSuchProcess):
                left.kill()
        process.kill()


def descendants(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(process.pid).children(recursive=True)
    return []


def alive(processes: list[psutil.Process]) -> list[str]:
    names = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                names.append(" ".join(process.cmdline()))
    return names


@pytest.mark.slow
def test_a_job_runs_the_sweep_on_its_nodes_and_ends_everything(
    job: "subprocess.Popen[str]", tmp_path: Path
) -> None:
    def nodes() -> int:
        return sum("/raylet " in command for command in alive(descendants(job)))

    log = tmp_path / "job.log"
    wait_for(lambda: nodes() == 2 or job.poll() is not None)
    assert job.poll() is None, log.read_text()
    wait_for(lambda: any((tmp_path / "runs").glob("waves/trials/*/result.json")))
    seen = descendants(job)
    assert job.wait(120) == 0, log.read_text()
    assert len([*(tmp_path / "runs").glob("waves/trials/*/result.json")]) == 6
    wait_for(lambda: not alive(seen), timeout=45)
    calls = (tmp_path / "srun.log").read_text()
    assert "--nodelist=first" in calls
    assert "--exclude=first" in calls
    token = "RAY_AUTH_TOKEN"
    assert token not in log.read_text() + calls


@pytest.mark.slow
def test_the_end_of_the_time_leaves_checkpoints(
    job: "subprocess.Popen[str]", tmp_path: Path
) -> None:
    wait_for(lambda: any((tmp_path / "runs").glob("waves/trials/*/result.json")))
    seen = descendants(job)
    job.send_signal(signal.SIGTERM)
    assert job.wait(120) == 130, (tmp_path / "job.log").read_text()
    assert "unfinished" in (tmp_path / "job.log").read_text()
    wait_for(lambda: not alive(seen), timeout=45)
