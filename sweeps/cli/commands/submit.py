"""`submit`, and `logs`, `status` and `stop` with `--address`: sweeps as jobs of a cluster.

What the study knows is asked on the cluster, by the same commands: this machine need reach neither
database nor storage, nor know their passwords.
"""

import json as json_text
import os
import shlex
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from peft_jobs import SpecError
from sweeps.cli.exit_codes import ExitCode
from sweeps.cli.screen import clock, out, pairs, print_json, say
from sweeps.submission.bundle import pack

if TYPE_CHECKING:
    from sweeps.submission.jobs import Job, Jobs

_END_SECONDS = 60.0
"""How long `stop` waits for the job's end after the sweep's."""


def submit(path: Path, overrides: Sequence[str], address: str) -> None:
    """Hand the sweep to the cluster; prints the job's id."""
    with tempfile.TemporaryDirectory(prefix="peft-sweep-") as folder:
        bundle = pack(path, overrides, Path(folder))
        jobs = _connect(address)
        for file in bundle.left:
            say(f"{file} is too large to upload: it must be at that path on every node.")
        job = jobs.submit(bundle.name, bundle.storage, bundle.entrypoint, Path(folder))
    say(f"Submitted {bundle.name}; it goes on without this machine.", style="bold")
    quoted = shlex.quote(address)
    for verb in ("logs --follow", "status", "stop"):
        verb, _, option = verb.partition(" ")
        say(f"  peft-sweep {verb} {bundle.name} --address {quoted} {option}".rstrip())
    out.print(job.id)


def logs(name: str, address: str, follow: bool) -> None:
    """Print what the newest job of the sweep has printed; with `follow`, until it ends."""
    jobs, job = _find(name, address)
    if not follow:
        out.out(jobs.log(job), end="")
        return
    for text in jobs.follow(job):
        out.out(text, end="")
    _tell_end(jobs.wait(job, _END_SECONDS))


def status(name: str, address: str, json: bool) -> None:
    """Print how the newest job of the sweep is, and what the study on the cluster knows."""
    jobs, job = _find(name, address)
    words = ["status", job.sweep, "--storage", job.storage]
    if json:
        code, text = jobs.ask([*words, "--json"])
        sweep = json_text.loads(text[text.index("{") :]) if code == ExitCode.DONE else None
        print_json({"job": asdict(job), "status": sweep})
        return
    out.print(pairs({"job": f"{job.id}, {_described(job)}"}))
    out.out(jobs.ask(words)[1], end="")


def stop(name: str, address: str) -> ExitCode:
    """Let the sweep leave checkpoints and end; end the job in any case."""
    jobs, job = _find(name, address)
    if not job.runs:
        raise SpecError(f"the job {job.id} does not run; it is {_described(job)}")
    code, text = jobs.ask(["stop", job.sweep, "--storage", job.storage])
    if code == ExitCode.DONE:
        job = jobs.wait(job, _END_SECONDS)
    else:  # not begun yet, or not to be reached; what its checkpoints hold is kept
        say(text.strip())
    if job.runs:
        jobs.kill(job)
        job = jobs.wait(job, _END_SECONDS)
    _tell_end(job)
    return ExitCode.FAILED if job.runs else ExitCode.DONE


def _connect(address: str) -> "Jobs":
    if {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # Ray reads it when it is imported
    from sweeps.submission.jobs import Jobs

    return Jobs(address)


def _find(name: str, address: str) -> tuple["Jobs", "Job"]:
    jobs = _connect(address)
    job = jobs.find(name)
    if job is None:
        raise SpecError(f"no job of a sweep {name!r} at {address}")
    return jobs, job


def _tell_end(job: "Job") -> None:
    say(f"The job {job.id} is {_described(job)}.")


def _described(job: "Job") -> str:
    """`running for 1:02`; of an ended job, the exit code in our words."""
    if job.started is None:
        return job.state.lower()
    seconds = clock((job.ended or time.time()) - job.started)
    if job.runs:
        return f"{job.state.lower()} for {seconds}"
    words: dict[int | None, str] = {
        ExitCode.DONE: "done",
        ExitCode.INTERRUPTED: "interrupted",
        None: job.state.lower(),
    }
    return f"{words.get(job.exit_code, f'failed with exit code {job.exit_code}')} after {seconds}"
