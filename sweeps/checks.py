"""What is wrong with a sweep beyond its single fields, seen before anything is started."""

import re
from pathlib import Path
from urllib.parse import urlsplit

import sqlalchemy
from pydantic import ValidationError
from sqlalchemy.engine import make_url

from peft_jobs import TrialSpec
from peft_jobs.dotted import flatten, paths_of
from peft_jobs.mistakes import mistakes, suggest
from peft_jobs.spec import ADAPTERS, DEMO, INCOMPATIBLE, Source
from peft_jobs.store import is_url
from search_spaces import FunctionSpace, GivenSuggest, Params, RandomSuggest, SpaceError
from sweeps.redact import redact
from sweeps.spec import SweepSpec

_POINTS_CHECKED = 128
MEASURED = (
    "memory/peak_allocated_bytes",
    "memory/peak_reserved_bytes",
    "memory/peak_rss_bytes",
    "trainable_parameters",
    "minutes",
)
"""What a constraint may bound beside the task's metrics."""
_FIXED_PARTS = (
    *("data.validation", "data.test", "data.seed", "data.group_by", "data.max_length"),
    "evaluation.",
    *("model.name_or_path", "model.revision", "task."),
)
_HORIZONS = ("training.max_samples", "training.num_train_epochs", "training.max_steps")
_FILES = ("optuna.db", "mlflow.db", "mlartifacts", "cache")
_MOST = {
    "n_trials": 10**6,
    "max_steps": 10**9,
    "num_train_epochs": 10**6,
    "num_rungs": 100,
    "max_failures": 10**6,
}
"""Of a budget; above these a sweep would never end, and the number is a slip."""
_MOST_RUNGS = 100
_SERVERS = ("http", "https")
_BATCH = ("training.per_device_train_batch_size", "training.gradient_accumulation_steps")


def problems(spec: SweepSpec) -> list[str]:
    """One line per mistake; none for a sweep that may be launched."""
    return [*_contradictions(spec), *_bad_points(spec)]


def draw_points(spec: SweepSpec) -> list[Params]:
    """Seeded random points of the space that its constraints allow; for checks before launch."""
    base = flatten(spec.trial)
    points = (spec.space.draw(RandomSuggest(seed), base) for seed in range(_POINTS_CHECKED))
    return [point for point in points if spec.space.violated(point, base) is None]


def drawn_trials(spec: SweepSpec) -> list[TrialSpec]:
    """The trials of `draw_points`, without those that a method of the space cannot do."""
    trials = []
    for point in draw_points(spec):
        try:
            trials.append(spec.trial.with_params(point))
        except ValidationError as error:
            if not _is_incompatible(error):
                raise
    return trials


def varying_names(spec: SweepSpec) -> tuple[str, ...]:
    """The parameters that take more than one value, in the order in which points hold them."""
    values: dict[str, set[str]] = {}
    for point in draw_points(spec):
        for name, value in point.items():
            values.setdefault(name, set()).add(repr(value))
    return tuple(name for name, seen in values.items() if len(seen) > 1)


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
    measured = (*task.METRICS, *(generation.names if generation is not None else ()))
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
    if spec.name in _FILES:
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
    for field in ("train", "validation", "test"):
        source = getattr(spec.trial.data, field)
        if not isinstance(source, Source) or is_url(source.path):
            continue
        if source.is_file and not Path(source.path).is_file():
            found.append(f"data.{field}: no such file: {source.path}")
    found += [
        f"budget.{name}: must be at most {most:,}, got {value:,}"
        for name, most in _MOST.items()
        if (value := getattr(budget, name) or 0) > most
    ]
    if budget.rungs is not None and len(budget.rungs) > _MOST_RUNGS:
        return [*found, f"budget.rungs: must be at most {_MOST_RUNGS}, got {len(budget.rungs):,}"]
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


def _bad_points(spec: SweepSpec) -> list[str]:
    """What is wrong with the space, seen from the trial: names, and points drawn from it."""
    try:
        known = {*flatten(spec.trial), *paths_of(TrialSpec)}
        spec.space.check_names(known)
        points = draw_points(spec)
        given = _bad_given_points(spec)
    except SpaceError as error:
        return [f"space: {line}" for line in str(error).splitlines()]
    except Exception as error:
        if not isinstance(spec.space, FunctionSpace):
            raise
        return [f"space: {spec.space.function} raised {type(error).__name__}: {error}"]
    if not points:
        return [f"space: none of {_POINTS_CHECKED} random points satisfies the constraints"]
    found: dict[str, str] = {line: line for line in given}
    num_impossible = 0
    for name in sorted({name for point in points for name in point}):
        if name in _HORIZONS or name.startswith(_FIXED_PARTS):
            found[name] = f"space: {name} must be the same for all trials to compare them"
        if name in _BATCH and spec.budget.max_steps is not None:
            found[name] = f"budget.max_steps: {name} is sampled, so give budget.max_samples"
    impossible: dict[str, str] = {}
    for point in points:
        try:
            spec.trial.with_params(point)
        except ValidationError as error:
            if _is_incompatible(error):  # the sweep turns such points away, as long as others are
                impossible.update({line: f"space: {line}" for line in mistakes(error, TrialSpec)})
                num_impossible += 1
                continue
            foreign = _foreign(point, spec, points)
            for line in mistakes(error, TrialSpec):  # one value of each mistake is enough
                line = foreign.get(line.partition(":")[0], line)
                found.setdefault(line.rpartition(", got ")[0] or line, f"space: {line}")
        except ValueError as error:
            found[str(error)] = f"space: {error}"
    if num_impossible == len(points):
        found |= impossible
    return list(found.values())


def _bad_given_points(spec: SweepSpec) -> list[str]:
    """What is wrong with the given points that shows only where the rest of a trial is known."""
    base, found = flatten(spec.trial), []
    for index in range(len(spec.space.points_to_evaluate)):
        given, place = spec.space.given(index), f"space.points_to_evaluate.{index}"
        drawn = [
            spec.space.draw(GivenSuggest(given, RandomSuggest(seed)), base)
            for seed in range(_POINTS_CHECKED)
        ]
        idle = [name for name in given if not any(name in params for params in drawn)]
        if idle:
            found.append(f"{place}: {', '.join(idle)}: has no value here, as its `when` is false")
        violated = [spec.space.violated(params, base) for params in drawn]
        if None not in violated:
            found.append(f"{place}: must satisfy the constraint {violated[0]}")
    return found


def _foreign(point: Params, spec: SweepSpec, points: list[Params]) -> dict[str, str]:
    """What to say of each field that the point gives to a method that has no such field."""
    method = str(point.get("adapter.method", spec.trial.adapter.method))
    drawn = {str(other["adapter.method"]) for other in points if "adapter.method" in other}
    told = {}
    for section, field in {tuple(name.split(".")[:2]) for name in point if "." in name}:
        if section != "adapter" or method not in ADAPTERS or _has(method, field):
            continue
        having = [repr(other) for other in sorted(drawn) if _has(other, field)]
        where = f"in [{', '.join(having)}]" if len(having) > 1 else f"== {''.join(having)}"
        advice = f'give it `when: "adapter.method {where}"`' if having else "leave it out"
        name = f"{section}.{field}"
        told[name] = f"{name}: the method {method} has no {field}; {advice}"
    return told


def _has(method: str, field: str) -> bool:
    return method in ADAPTERS and field in ADAPTERS[method].model_fields


def _is_incompatible(error: ValidationError) -> bool:
    """Whether all that is wrong is that the method cannot do what the rest of the trial asks."""
    return all(item["type"] == INCOMPATIBLE for item in error.errors(include_url=False))
