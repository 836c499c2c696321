"""Ray's job server: sweeps that run on a cluster without this machine, and questions to them.

It speaks HTTP at the port of Ray's dashboard. A job is found again by the name of its sweep, which
its metadata hold; whoever reaches the server can read them.
"""

import asyncio
import contextlib
import os
import secrets
import shlex
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from ray.dashboard.modules.job.pydantic_models import JobDetails
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from peft_jobs import SpecError
from sweeps.errors import Unavailable

_KNOCK_SECONDS = 5.0
_POLL_SECONDS = 0.3
_ANSWER_SECONDS = 180.0
_STARTS = "Running entrypoint for job"
"""How the last line that is Ray's own begins in a job's log."""


@dataclass(frozen=True)
class Job:
    """A job as the server knows it."""

    id: str
    sweep: str
    storage: str
    state: str
    """Ray's word: PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED."""
    exit_code: int | None
    message: str
    started: float | None
    ended: float | None

    @property
    def runs(self) -> bool:
        return self.state in ("PENDING", "RUNNING")


class Jobs:
    """The job server at `address`, http://HOST:PORT. Unavailable if nobody answers there."""

    def __init__(self, address: str) -> None:
        self.address = _checked(address)
        os.environ["RAY_API_SERVER_ADDRESS"] = address  # Ray's variables win over its argument
        with _plain_errors(address):
            parts = urlsplit(address)  # Ray itself would wait as long as TCP does
            at = (parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))
            socket.create_connection(at, timeout=_KNOCK_SECONDS).close()
            self._client = JobSubmissionClient(address)

    def submit(self, sweep: str, storage: str, entrypoint: str, folder: Path) -> Job:
        """Start `entrypoint` on the cluster, in a copy of `folder`; SpecError if one runs."""
        if (last := self.find(sweep)) is not None and last.runs:
            raise SpecError(f"the sweep {sweep!r} has the job {last.id}, which is {last.state}")
        number = f"{sweep}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
        with _plain_errors(self.address):
            self._client.submit_job(
                entrypoint=entrypoint,
                submission_id=number,
                runtime_env={"working_dir": str(folder)},
                metadata={"sweep": sweep, "storage": storage},
            )
            return _job(self._client.get_job_info(number))

    def find(self, name: str) -> Job | None:
        """The newest job of the sweep `name`, or the job with this id."""
        with _plain_errors(self.address):
            found = [_job(one) for one in self._client.list_jobs() if one.submission_id]
        jobs = [job for job in found if job.sweep and name in (job.sweep, job.id)]
        return max(jobs, key=lambda job: (job.started or 0.0, job.id), default=None)

    def log(self, job: Job) -> str:
        """All that the job has printed."""
        with _plain_errors(self.address):
            return self._client.get_job_logs(job.id)

    def follow(self, job: Job) -> Iterator[str]:
        """What the job prints, from its start, as it comes, to its end."""
        chunks = self._client.tail_job_logs(job.id)

        async def following() -> str | None:
            return await anext(chunks, None)

        with _plain_errors(self.address), asyncio.Runner() as runner:
            while (chunk := runner.run(following())) is not None:
                yield chunk

    def ask(self, words: Sequence[str]) -> tuple[int, str]:
        """Run `peft-sweep WORDS` on the cluster, where database and storage are reached.

        The exit code and what it has printed; takes some seconds.
        """
        with _plain_errors(self.address):
            command = shlex.join(["peft-sweep", *words])
            number = self._client.submit_job(entrypoint=f"exec {command}")
            deadline = time.monotonic() + _ANSWER_SECONDS
            while (job := _job(self._client.get_job_info(number))).runs:
                if time.monotonic() > deadline:
                    self._client.stop_job(number)
                    raise Unavailable(f"{command}: no answer in {_ANSWER_SECONDS:g} s")
                time.sleep(_POLL_SECONDS)
            text = self._client.get_job_logs(number)
            self._client.delete_job(number)
        if job.exit_code is None:
            raise SpecError(f"{command} could not be started on the cluster: {job.message}")
        lines = text.splitlines(keepends=True)
        first = next((i for i, line in enumerate(lines, 1) if line.startswith(_STARTS)), 0)
        return job.exit_code, "".join(lines[first:])

    def wait(self, job: Job, seconds: float) -> Job:
        """The job when it has ended, or as it is after `seconds`."""
        deadline = time.monotonic() + seconds
        while True:
            with _plain_errors(self.address):
                job = _job(self._client.get_job_info(job.id))
            if not job.runs or time.monotonic() > deadline:
                return job
            time.sleep(_POLL_SECONDS)

    def kill(self, job: Job) -> None:
        """SIGTERM to all of the job's processes, and SIGKILL three seconds later."""
        with _plain_errors(self.address):
            self._client.stop_job(job.id)


def _checked(address: str) -> str:
    if address.startswith("ray://"):
        raise SpecError(
            "ray:// addresses (Ray Client) would move the driver to the cluster's head: give the "
            "job server's address, http://HOST:8265"
        )
    if urlsplit(address).scheme not in ("http", "https"):
        raise SpecError(
            f"the job server's address must look like http://HOST:8265, got {address!r}; on a "
            "machine of the cluster, `peft-sweep run --address auto` needs none"
        )
    return address.rstrip("/")


def _job(details: JobDetails) -> Job:
    metadata: Mapping[str, str] = details.metadata or {}
    return Job(
        id=str(details.submission_id),
        sweep=metadata.get("sweep", ""),
        storage=metadata.get("storage", ""),
        state=str(details.status.value),
        exit_code=details.driver_exit_code,
        message=details.message or "",
        started=details.start_time and details.start_time / 1000,
        ended=details.end_time and details.end_time / 1000,
    )


@contextlib.contextmanager
def _plain_errors(address: str) -> Iterator[None]:
    try:
        yield
    except AuthenticationError as error:
        raise SpecError(
            f"{address} wants the cluster's token: give it in RAY_AUTH_TOKEN or, in a file, in "
            "RAY_AUTH_TOKEN_PATH"
        ) from error
    except OSError as error:  # what `requests` raises is one
        raise Unavailable(f"no job server answers at {address}: {error}") from error
    except RuntimeError as error:
        raise SpecError(f"the job server at {address}: {error}") from error
