"""What is wrong with a sweep beyond its single fields, seen before anything is started."""

import re
from pathlib import Path
from urllib.parse import urlsplit

import sqlalchemy
from sqlalchemy.engine import make_url

from peft_jobs.spec import DEMO
from peft_jobs.spec.mistakes import suggest
from peft_jobs.storage.object_store import is_url
from search_spaces import SpaceError
from sweeps.file_names import STORAGE_FILES
from sweeps.redact import redact
from sweeps.spec import SweepSpec
from sweeps.spec.space_checks import space_problems

MEASURED = (
    "memory/peak_allocated_bytes",
    "memory/peak_reserved_bytes",
    "memory/peak_device_bytes",
    "memory/peak_rss_bytes",
    "trainable_parameters",
    "minutes",
)
"""What a constraint may bound beside the task's metrics."""
_MAX_BUDGET = {
    "n_trials": 10**6,
    "max_steps": 10**9,
    "num_train_epochs": 10**6,
    "num_rungs": 100,
    "max_failures": 10**6,
}
"""Of a budget; above these a sweep would never end, and the number is a slip."""
_MAX_RUNGS = 100
_SERVERS = ("http", "https")


def problems(spec: SweepSpec) -> list[str]:
    """One line per mistake; none for a sweep that may be launched."""
    return [*_contradictions(spec), *space_problems(spec)]


def _contradictions(spec: SweepSpec) -> list[str]:
    found = []
    training, budget, task = spec.trial.training, spec.budget, spec.trial.task
    for name in ("max_samples", "num_train_epochs", "max_steps"):
        if getattr(training, name) is not None:
            found.append(f"training.{name}: the horizon of a sweep is set by budget.{name}")
    if spec.trial.evaluation.rungs:
        found.append("evaluation.rungs: the rungs of a sweep are set by budget.rungs")
    own = spec.trial.evaluation.metrics  # functions, whose names for things are not known here
    generation = spec.trial.evaluation.generation
    if generation is not None:
        own = (*own, *generation.functions)
    measured = (*task.metrics, *(generation.names if generation is not None else ()))
    metric = spec.objective.metric
    if metric not in measured:
        if not (own and metric.startswith("validation/")):
            told = f"{metric!r} is not measured by {task.type}{suggest(metric, measured)}"
            found.append(f"objective.metric: {told}")
        elif "direction" not in spec.objective.model_fields_set:
            found.append(f"objective.direction: must be given for a metric of your own, {metric}")
    bounded = (*measured, *MEASURED)
    for name in spec.constraints:
        if name not in bounded and not (own and name.startswith("validation/")):
            found.append(f"constraints: {name!r} is not measured{suggest(name, bounded)}")
    if spec.name in STORAGE_FILES:
        found.append(f"name: {spec.name!r} is a file of the storage; give another name")
    if spec.study_url is not None:
        found += _bad_url(spec.study_url)
    if spec.tracking.enabled and spec.tracking.uri is not None:
        found += _bad_tracking(spec.tracking.uri)
    model = spec.trial.model
    if model.revision is not None and (
        model.name_or_path == DEMO or Path(model.name_or_path).is_dir()
    ):
        found.append(f"model.revision: {model.name_or_path} is a folder here; leave it out")
    for field, source in spec.trial.data.sources.items():
        if source.is_file and not is_url(source.path) and not Path(source.path).is_file():
            found.append(f"data.{field}: no such file: {source.path}")
    found += [
        f"budget.{name}: must be at most {most:,}, got {value:,}"
        for name, most in _MAX_BUDGET.items()
        if (value := getattr(budget, name) or 0) > most
    ]
    if budget.rungs is not None and len(budget.rungs) > _MAX_RUNGS:
        return [*found, f"budget.rungs: must be at most {_MAX_RUNGS}, got {len(budget.rungs):,}"]
    if budget.rungs is not None and list(budget.rungs) != sorted(set(budget.rungs)):
        found.append(f"budget.rungs: must ascend without repeats, got {list(budget.rungs)}")
    if budget.rungs is not None and budget.max_samples is not None:
        beyond = [rung for rung in budget.rungs if rung >= budget.max_samples]
        if beyond:
            found.append(f"budget.rungs: must lie below max_samples, got {beyond}")
    if spec.sampler.type == "grid":
        try:
            spec.space.grid()
        except SpaceError as error:
            found.append(f"sampler: {error}")
        if spec.space.points_to_evaluate:
            found.append("space.points_to_evaluate: must be [] with grid, which takes all points")
    return found


def _bad_url(url: str) -> list[str]:
    try:
        make_url(url).get_dialect()
    except sqlalchemy.exc.ArgumentError as error:  # the message does not hold the password
        return [f"study_url: is no SQLAlchemy URL ({error})"]
    return []


def _bad_tracking(uri: str) -> list[str]:
    try:
        parts = urlsplit(uri)
        scheme, host, _ = parts.scheme, parts.hostname, parts.port  # a port that is none raises
    except ValueError:
        scheme, host = "", None
    if (scheme in _SERVERS and host) or re.match(r"(sqlite:///|databricks://).", uri):
        return []
    return [
        "tracking.uri: must be a URL such as http://host:5000 or sqlite:///runs/mlflow.db, "
        f"got {redact(uri)!r}"
    ]
