"""What a few neighbouring operations add to what MLflow already holds of a run."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Run
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

from sweeps.tracking.outbox import Op


@dataclass
class KnownRun:
    """What MLflow holds of a run."""

    id: str
    name: str
    status: str
    params: dict[str, str] = field(default_factory=dict)
    points: dict[str, tuple[int, float]] = field(default_factory=dict)
    """The last step of each metric, and the value there."""


@dataclass
class Batch:
    """What is new in some operations on one run."""

    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    experiment_tags: dict[str, str] = field(default_factory=dict)
    metrics: list[Metric] = field(default_factory=list)
    points: dict[str, tuple[int, float]] = field(default_factory=dict)
    """The last step of each of `metrics`, and the value there."""
    datasets: list[DatasetInput] = field(default_factory=list)
    started_as: str = ""
    """The run's name, when it was started (again)."""
    end: tuple[str, int] | None = None
    """Status and time (milliseconds since the epoch), when the run has ended."""


def known(run: Run) -> KnownRun:
    """What `run`, as MLflow returned it, holds."""
    points = {m.key: (int(m.step), float(m.value)) for m in run.data.to_proto().metrics}
    return KnownRun(
        run.info.run_id, run.info.run_name, run.info.status, dict(run.data.params), points
    )


def gather(run: KnownRun, ops: Sequence[Op]) -> Batch:
    """What `ops`, records of `run` in the order they were put, add to it. Changes neither.

    A step of a metric that the run already has is left out: a resumed trial repeats the steps since
    its checkpoint, and the first value stays. A final value goes to the run's last step when its
    metric has steps, and is left out where it repeats the value there; otherwise it goes to step 0.
    """
    batch = Batch()
    for op in ops:
        body: dict[str, Any] = op.body
        batch.tags |= body["tags"]
        batch.datasets += map(_dataset, body.get("datasets", ()))  # 0.1.0 has put none
        if op.kind == "start":
            batch.started_as, batch.end = body["run_name"], None
            batch.experiment_tags |= body["experiment_tags"]
            _add_params(batch, run, body["params"])
        else:
            _add_metrics(batch, run, body)
        if op.kind == "end":
            batch.end = body["status"], body["time_ms"]
    return batch


def _dataset(told: dict[str, Any]) -> DatasetInput:
    rows = {} if told["num_rows"] is None else {"num_rows": told["num_rows"]}
    dataset = Dataset(
        name=told["name"],
        digest=told["digest"],
        source_type="hf" if told["is_on_hub"] else "local",
        source=json.dumps({"path" if told["is_on_hub"] else "uri": told["source"]}),
        profile=json.dumps(rows),
    )
    return DatasetInput(dataset, [InputTag(MLFLOW_DATASET_CONTEXT, told["context"])])


def _add_params(batch: Batch, run: KnownRun, params: dict[str, str]) -> None:
    held = run.params | batch.params
    for name, value in params.items():
        if name not in held:
            batch.params[name] = value
        elif held[name] != value:  # MLflow answers 400 to a param that changes
            batch.tags[f"changed.{name}"] = value


def _add_metrics(batch: Batch, run: KnownRun, body: dict[str, Any]) -> None:
    held = run.points | batch.points
    last_step = max((step for step, _ in held.values()), default=0)
    for name, value in body["metrics"].items():
        if "step" in body:
            step = body["step"]
            is_known = name in held and step <= held[name][0]
        else:
            # Step 0 is where a final value is put that has no steps: this may be its repetition.
            step = last_step if name in held and held[name][0] > 0 else 0
            is_known = held.get(name) == (step, value)
        if not is_known:
            batch.metrics.append(Metric(name, value, body["time_ms"], step))
            batch.points[name] = (step, value)
