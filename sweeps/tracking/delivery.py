"""Carries operations from the outbox to MLflow, each exactly once however often it is tried.

MLflow itself is the memory of what was delivered: a run is found by a tag before one is created,
and its params and the last step of each of its metrics are read when it is found. So a delivery
that was cut off before its rows were deleted can be repeated. Only `MlflowClient` with explicit run
ids is used, never the fluent API with its active run.
"""

import getpass
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Param, RunTag
from mlflow.exceptions import MlflowException

from peft_jobs import faults
from peft_jobs.storage.object_store import local_copy
from sweeps.redact import redact
from sweeps.tracking.batch import Batch, KnownRun, gather, known
from sweeps.tracking.destination import Destination
from sweeps.tracking.outbox import RECORDS, SWEEP, Op, Outbox

log = logging.getLogger(__name__)

OPS_AT_ONCE = 1000
# MLflow takes 1000 entities in one request, of which 100 may be params and 100 tags.
METRICS_AT_ONCE, PARAMS_AT_ONCE, TAGS_AT_ONCE = 800, 100, 100
MAX_RUN_NAME_CHARACTERS = 250
UPLOAD_TIMEOUT_SECONDS = 300  # a proxying server answers only when the object store has the file

SOURCE_TAG, SOURCE = "mlflow.source.name", "peft-sweep"
"""On every run of ours: one that only has our key was made by something else."""


class RefusedByMlflow(Exception):
    """MLflow is there, but will never take this operation."""


class Delivery:
    """Delivers one sweep's outbox to one destination. Used by one thread."""

    def __init__(self, outbox: Outbox, destination: Destination) -> None:
        self._outbox = outbox
        self._destination = destination
        self._client = MlflowClient(destination.tracking_uri)
        self._experiment_id: str | None = None
        self._runs: dict[str, KnownRun] = {}

    def deliver_some(self) -> int:
        """Deliver the next operations, and return how many left the outbox; 0 when it is empty.

        Records go first, grouped by run; one upload at a time goes when no record waits. What
        MLflow refuses (400, 404) becomes a dead letter with a line in the log. Raises whatever the
        store raises when it is away: then nothing is lost and the call may be repeated.
        """
        waiting = self._outbox.peek(OPS_AT_ONCE)
        ops = [op for op in waiting if op.lane == RECORDS] or waiting[:1]
        by_run: dict[str, list[Op]] = {}
        for op in ops:
            by_run.setdefault(op.key, []).append(op)
        for key, group in by_run.items():
            self._deliver(key, group)
        return len(ops)

    def _deliver(self, key: str, ops: list[Op]) -> None:
        run = self._run(key, ops)
        try:
            if ops[0].lane == RECORDS:
                self._write(run, gather(run, ops))
            else:
                self._upload(run, ops[0])
        except Exception as error:  # of MLflow, requests, or an object store's client
            if not _is_refusal(error):
                raise
            # Read the run anew: it may have been deleted in the UI, and is then created again.
            del self._runs[key]
            if len(ops) > 1:
                for op in ops:
                    self._deliver(key, [op])
                return
            reason = redact(f"{type(error).__name__}: {error}")
            log.error("MLflow refused %r of %s, set aside: %s", ops[0].kind, run.name, reason)
            self._outbox.dead_letter([ops[0].id], reason)
        else:
            faults.passing("outbox.delivered")
            self._outbox.delete([op.id for op in ops])

    def _run(self, key: str, ops: Sequence[Op] = ()) -> KnownRun:
        """The run of `key`, found by its tag or created (oldest first, should there be two)."""
        if key in self._runs:
            return self._runs[key]
        tag, value = "sweep.key", self._destination.sweep_key
        if key != SWEEP:
            tag, value = "trial.key", f"{value}/{key}"
        found = self._client.search_runs(
            [self._experiment()],
            filter_string=f"tags.`{tag}` = '{value}' and tags.`{SOURCE_TAG}` = '{SOURCE}'",
            order_by=["attributes.start_time ASC"],
            max_results=1,
        )
        run = known(found[0]) if found else self._create(key, {tag: value}, ops)
        self._runs[key] = run
        return run

    def _create(self, key: str, tags: dict[str, str], ops: Sequence[Op]) -> KnownRun:
        body: dict[str, Any] = next((op.body for op in ops if op.kind == "start"), {})
        tags |= {SOURCE_TAG: SOURCE, "mlflow.user": _user()}
        if key != SWEEP:
            tags["mlflow.parentRunId"] = self._run(SWEEP).id
        name = body.get("run_name", self._destination.sweep if key == SWEEP else f"trial-{key}")
        return known(
            self._client.create_run(
                self._experiment(),
                start_time=body.get("time_ms"),
                tags=tags,
                run_name=name[:MAX_RUN_NAME_CHARACTERS],
            )
        )

    def _experiment(self) -> str:
        if self._experiment_id is None:
            self._experiment_id = experiment_id(self._client, self._destination)
        return self._experiment_id

    def _write(self, run: KnownRun, batch: Batch) -> None:
        params = [Param(name, value) for name, value in batch.params.items()]
        tags = [RunTag(name, value) for name, value in batch.tags.items()]
        metrics = batch.metrics
        name = batch.started_as[:MAX_RUN_NAME_CHARACTERS]
        if name and (run.status, run.name) != ("RUNNING", name):
            self._client.update_run(run.id, status="RUNNING", name=name)
            run.status, run.name = "RUNNING", name
        for key, value in batch.experiment_tags.items():
            self._client.set_experiment_tag(self._experiment(), key, value)
        while params or tags or metrics:
            self._client.log_batch(
                run.id,
                metrics=metrics[:METRICS_AT_ONCE],
                params=params[:PARAMS_AT_ONCE],
                tags=tags[:TAGS_AT_ONCE],
            )
            del metrics[:METRICS_AT_ONCE], params[:PARAMS_AT_ONCE], tags[:TAGS_AT_ONCE]
        if batch.datasets:  # MLflow takes one that a run has already for the same
            self._client.log_inputs(run.id, datasets=batch.datasets)
        if batch.end:
            status, time_ms = batch.end
            self._client.set_terminated(run.id, status, time_ms)
            run.status = status
        run.params |= batch.params
        run.points |= batch.points

    def _upload(self, run: KnownRun, op: Op) -> None:
        body: dict[str, Any] = op.body
        with _patience(UPLOAD_TIMEOUT_SECONDS):
            if op.kind == "text":
                self._client.log_text(run.id, body["text"], body["file"])
                return
            folder = body["artifact_path"] or None
            try:
                with local_copy(self._outbox.folder / body["path"]) as path:
                    if path.is_dir():
                        self._client.log_artifacts(run.id, str(path), folder)
                    else:
                        self._client.log_artifact(run.id, str(path), folder)
            except FileNotFoundError as error:
                if not body.get("optional"):
                    raise RefusedByMlflow(f"the artifact is gone: {body['path']}") from error


def experiment_id(client: MlflowClient, destination: Destination) -> str:
    """The id of the experiment, created if it is not there; RuntimeError if it is deleted."""
    name = destination.experiment
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        created: str = client.create_experiment(
            name,
            artifact_location=destination.artifact_location(),
            # Opens the UI on the runs' table instead of on traces.
            tags={"mlflow.experimentKind": "custom_model_development"},
        )
        return created
    if experiment.lifecycle_stage != "active":
        raise RuntimeError(
            f"experiment {name!r} is deleted; `mlflow experiments restore "
            f"--experiment-id {experiment.experiment_id}`, or name another one"
        )
    return str(experiment.experiment_id)


def _is_refusal(error: Exception) -> bool:
    """Whether trying again is useless: the store answered, and it said 400 or 404.

    ENDPOINT_NOT_FOUND is no refusal: something else than MLflow answers at this address.
    """
    if isinstance(error, MlflowException):
        code = error.get_http_status_code()  # type: ignore[no-untyped-call]
        return code in (400, 404) and error.error_code != "ENDPOINT_NOT_FOUND"
    response = getattr(error, "response", None)  # of requests.HTTPError, from an upload
    return isinstance(error, RefusedByMlflow) or getattr(response, "status_code", None) in (
        400,
        404,
        413,
    )


@contextmanager
def _patience(seconds: int) -> Iterator[None]:
    """MLflow's HTTP timeout for a while; it is read from the environment at each request."""
    name = "MLFLOW_HTTP_REQUEST_TIMEOUT"
    before = os.environ.get(name) or "10"
    os.environ[name] = str(max(seconds, int(before)))
    try:
        yield
    finally:
        os.environ[name] = before


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return "unknown"
