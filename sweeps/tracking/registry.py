"""MLflow's registry of models: an exported adapter as a version of one, under an alias.

A version's files lie with the trial's run, in a folder that is named by their content: a version
never changes. They are the adapter, its tokenizer and its card; of the base there is a reference.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from peft_jobs.storage.saved_adapter import adapter_digest
from sweeps.tracking.delivery import SOURCE, SOURCE_TAG
from sweeps.tracking.destination import Destination, prepare

CHAMPION = "champion"
_DIGEST = "adapter.sha256"


@dataclass(frozen=True)
class Registered:
    """A version of a registered model."""

    model: str
    version: int
    alias: str
    """What now points to it."""
    is_new: bool
    """Whether there was no such version before."""


def register(
    destination: Destination,
    number: int,
    folder: Path,
    files: Sequence[str],
    model: str,
    tags: Mapping[str, str],
) -> Registered:
    """Make `files` of `folder` the version of `model` that its alias CHAMPION points to.

    They are logged into the run of trial `number`. The model is made if it is not there; earlier
    versions stay, and one that has this very adapter is taken. Raises LookupError if there is no
    such run, and what MLflow, its database or its server raises.
    """
    prepare(destination)
    client = MlflowClient(destination.tracking_uri)
    digest = adapter_digest(folder)
    found = next((v for v in _versions(client, model) if v.tags.get(_DIGEST) == digest), None)
    is_new = found is None
    if found is None:
        run_id = _run(client, destination, number)
        place = f"registered/{digest[:16]}"
        for name in files:
            client.log_artifact(run_id, str(folder / name), place)
        source = f"{client.get_run(run_id).info.artifact_uri}/{place}"
        found = client.create_model_version(
            model, source, run_id, tags={**tags, _DIGEST: digest}, await_creation_for=0
        )
    client.set_registered_model_alias(model, CHAMPION, str(found.version))
    return Registered(model, int(found.version), CHAMPION, is_new)


def _versions(client: MlflowClient, model: str) -> list[ModelVersion]:
    """The versions of a model, which is made if it is not there."""
    try:
        client.get_registered_model(model)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        client.create_registered_model(model)
        return []
    quoted = model.replace("'", "")
    return list(client.search_model_versions(f"name='{quoted}'"))


def _run(client: MlflowClient, destination: Destination, number: int) -> str:
    experiment = client.get_experiment_by_name(destination.experiment)
    key = destination.sweep_key
    wanted = f"tags.`trial.key` LIKE '{key}/%' and tags.`trial.number` = '{number}'"
    found = experiment and client.search_runs(
        [experiment.experiment_id],
        filter_string=f"{wanted} and tags.`{SOURCE_TAG}` = '{SOURCE}'",
        max_results=1,
    )
    if not found:
        raise LookupError(f"MLflow has no run of trial {number} in {destination.experiment!r}")
    return str(found[0].info.run_id)
