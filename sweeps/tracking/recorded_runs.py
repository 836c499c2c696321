"""The runs that MLflow holds of a sweep, outside of a launch: deleted, or copied to another store.

MLflow is asked by the sweep's key, which no other sweep has; what only looks like a run of ours
stays. Functions raise what MLflow, its database or its server raises.
"""

import contextlib
import io
import shutil
from collections.abc import Iterator
from pathlib import Path

from mlflow import MlflowClient
from mlflow.cli import gc
from mlflow.entities import Experiment, Metric, Param, Run, RunTag, ViewType

from sweeps.sqlite_urls import sqlite_url
from sweeps.tracking.artifact_root import local_path
from sweeps.tracking.delivery import (
    METRICS_AT_ONCE,
    PARAMS_AT_ONCE,
    SOURCE,
    SOURCE_TAG,
    TAGS_AT_ONCE,
    experiment_id,
)
from sweeps.tracking.destination import Destination, prepare
from sweeps.tracking.view import tag_name

_PAGE = 1000
_PARENT = "mlflow.parentRunId"


def delete_runs(destination: Destination) -> int:
    """Delete the sweep's runs, and its view; how many there were.

    A database's are gone for good, with their artifacts. A server marks them as deleted: its own
    `mlflow gc` frees the space.
    """
    client, found = _open(destination), 0
    for experiment, runs in _runs_of(client, destination.sweep_key):
        for run in runs:
            if run.info.lifecycle_stage == "active":
                client.delete_run(run.info.run_id)
        if (view := tag_name(destination.sweep)) in experiment.tags:
            client.delete_experiment_tag(experiment.experiment_id, view)
        found += len(runs)
        if destination.is_database:
            ids = ",".join(run.info.run_id for run in runs)
            uri = destination.tracking_uri
            words = ["--backend-store-uri", uri, "--tracking-uri", uri, "--run-ids", ids]
            with contextlib.redirect_stdout(io.StringIO()):
                gc.main(words, standalone_mode=False)
            _remove_empty(runs)
    return found


def copy_runs(source: Path, target: Path, sweep: str, key: str) -> int:
    """Copy the runs of a sweep, artifacts and all, from one SQLite file to another; how many.

    The other one is created if it is not there. Runs get new ids.
    """
    client = _open(Destination(sqlite_url(source), "any", sweep, key))
    copied: dict[str, str] = {}
    for experiment, runs in _runs_of(client, key):
        to = Destination(sqlite_url(target), experiment.name, sweep, key)
        other = _open(to)
        into = experiment_id(other, to)
        if (view := experiment.tags.get(tag_name(sweep))) is not None:
            other.set_experiment_tag(into, tag_name(sweep), view)
        for run in sorted(runs, key=lambda run: _PARENT in run.data.tags):  # the parent first
            if run.info.lifecycle_stage == "active":
                copied[run.info.run_id] = _copy(client, other, run, into, copied)
    return len(copied)


def _open(destination: Destination) -> MlflowClient:
    prepare(destination)
    return MlflowClient(destination.tracking_uri)


def _runs_of(client: MlflowClient, key: str) -> Iterator[tuple[Experiment, list[Run]]]:
    """Of each experiment that has any, the runs of a sweep, deleted ones too."""
    experiments: list[Experiment] = []
    token: str | None = None
    while token != "":
        page = client.search_experiments(max_results=_PAGE, page_token=token)
        experiments += page
        token = page.token or ""
    for experiment in experiments:
        runs: list[Run] = []
        for tag in (f"tags.`sweep.key` = '{key}'", f"tags.`trial.key` LIKE '{key}/%'"):
            token = None
            while token != "":
                found = client.search_runs(
                    [experiment.experiment_id],
                    filter_string=f"{tag} and tags.`{SOURCE_TAG}` = '{SOURCE}'",
                    run_view_type=ViewType.ALL,
                    max_results=_PAGE,
                    page_token=token,
                )
                runs += found
                token = found.token or ""
        if runs:
            yield experiment, runs


def _copy(
    client: MlflowClient, other: MlflowClient, run: Run, into: str, copied: dict[str, str]
) -> str:
    """Copy one run; its id there. `copied` has the ids of those before."""
    tags = dict(run.data.tags)
    if _PARENT in tags:
        tags[_PARENT] = copied.get(tags[_PARENT], tags[_PARENT])
    made = other.create_run(into, start_time=run.info.start_time, run_name=run.info.run_name)
    number = str(made.info.run_id)
    metrics: list[Metric] = []
    for name in run.data.metrics:
        metrics += client.get_metric_history(run.info.run_id, name)
    params = [Param(name, value) for name, value in run.data.params.items()]
    marks = [RunTag(name, value) for name, value in tags.items()]
    while metrics or params or marks:
        other.log_batch(
            number,
            metrics=[
                Metric(m.key, m.value, m.timestamp, m.step) for m in metrics[:METRICS_AT_ONCE]
            ],
            params=params[:PARAMS_AT_ONCE],
            tags=marks[:TAGS_AT_ONCE],
        )
        del metrics[:METRICS_AT_ONCE], params[:PARAMS_AT_ONCE], marks[:TAGS_AT_ONCE]
    if run.inputs is not None and run.inputs.dataset_inputs:
        other.log_inputs(number, datasets=run.inputs.dataset_inputs)
    if any(client.list_artifacts(run.info.run_id)):
        other.log_artifacts(number, client.download_artifacts(run.info.run_id, ""))
    if run.info.status != "RUNNING":
        other.set_terminated(number, run.info.status, run.info.end_time)
    return number


def _remove_empty(runs: list[Run]) -> None:
    """What `mlflow gc` leaves of the folders of runs: itself, empty."""
    for run in runs:
        artifacts = local_path(run.info.artifact_uri)
        if artifacts is not None and artifacts.parent.name == run.info.run_id:
            shutil.rmtree(artifacts.parent, ignore_errors=True)
