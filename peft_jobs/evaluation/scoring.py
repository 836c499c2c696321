"""Metrics of a model on a split: fixed order, no dropout, nothing kept of a batch but its sums."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from pyarrow.compute import list_value_length
from torch import nn

from peft_jobs.activity import moved
from peft_jobs.base.loading import Base
from peft_jobs.device.precision import autocast
from peft_jobs.evaluation.custom_metrics import checked, custom_metrics
from peft_jobs.evaluation.generation import Written, written
from peft_jobs.evaluation.serving import is_chat
from peft_jobs.spec import TrainingSpec, TrialSpec
from peft_jobs.tasks import TASKS, Batch, Example, Score, Task

FULL_PRECISION = TrainingSpec()


@dataclass(frozen=True)
class Evaluation:
    """What one evaluation of a split has found."""

    metrics: dict[str, float]
    """By `<split>/<metric>`."""
    scores: Sequence[Score]
    """Of all examples, in the order of `longest_first`."""
    written: Written | None = None


def evaluate(
    model: nn.Module,
    task: Task[Any],
    dataset: Dataset,
    *,
    batch_size: int,
    pad_token_id: int,
    device: torch.device,
    training: TrainingSpec = FULL_PRECISION,
    split: str = "validation",
) -> dict[str, float]:
    """`<split>/<metric>` of `model` over all examples, whatever the batch size.

    Examples are batched by length, longest first, so that padding is little and a batch that does
    not fit fails at once. `training` says what autocast the trial trains under. The model is left
    in the mode it came in; no random numbers are drawn.
    """
    scores = _scores(model, task, dataset, batch_size, pad_token_id, device, training)
    return named(split, task.metrics(scores))


def examine(
    model: nn.Module,
    base: Base,
    spec: TrialSpec,
    rows: Dataset,
    split: str = "validation",
    known: Sequence[Score] | None = None,
) -> Evaluation:
    """`evaluate` of a model on `base` as the trial `spec` measures it, with its own metrics, and
    what was found of each example.

    `known` are the scores, where those were found out already.
    """
    task, asked = TASKS[spec.task.type], spec.evaluation
    batch_size, pad_token_id = asked.per_device_eval_batch_size, base.tokenizer.pad_token_id
    if known is None:
        known = _scores(model, task, rows, batch_size, pad_token_id, base.device, spec.training)
    metrics = named(split, task.metrics(known))
    if not asked.metrics and asked.generation is None:
        return Evaluation(metrics, known)
    answers = None
    with measuring(model, base.device, spec.training):
        own = custom_metrics(asked.metrics, model, base.tokenizer, rows)
        if asked.generation is not None:
            answers = written(
                asked.generation, model, base.tokenizer, rows, batch_size, is_chat(spec.task)
            )
            own |= checked("evaluation.generation", answers.metrics, own)
    for name, value in own.items():
        if f"{split}/{name}" in metrics:
            raise ValueError(f"evaluation.metrics: {name!r} is the name of a metric of the task")
        metrics[f"{split}/{name}"] = value
    return Evaluation(metrics, known, answers)


def score(
    model: nn.Module, base: Base, spec: TrialSpec, rows: Dataset, split: str = "validation"
) -> dict[str, float]:
    """The metrics of `examine` alone."""
    return examine(model, base, spec, rows, split).metrics


def _scores(
    model: nn.Module,
    task: Task[Any],
    rows: Dataset,
    batch_size: int,
    pad_token_id: int,
    device: torch.device,
    training: TrainingSpec,
) -> list[Score]:
    with measuring(model, device, training):
        return [
            score
            for examples in batches(rows, batch_size)
            for score in task.scores(model, to_device(task.collate(examples, pad_token_id), device))
        ]


@contextmanager
def measuring(model: nn.Module, device: torch.device, training: TrainingSpec) -> Iterator[None]:
    """Eval mode, no gradients, the trial's precision; the model is left in the mode it came in."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), autocast(device, training):
            yield
    finally:
        model.train(was_training)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch's tensors on `device`."""
    return {name: tensor.to(device) for name, tensor in batch.items()}


def named(split: str, metrics: dict[str, float]) -> dict[str, float]:
    """A task's metrics by the names under which they are reported."""
    return {f"{split}/{name}": value for name, value in metrics.items()}


def batches(dataset: Dataset, batch_size: int) -> Iterator[list[Example]]:
    """All rows once, as examples of like lengths, longest first."""
    order = longest_first(dataset)
    starts = range(0, len(order), batch_size)
    for start in starts:
        moved()
        yield examples_of(dataset[order[start : start + batch_size]])


def longest_first(dataset: Dataset) -> list[int]:
    """Places of the examples, in the order in which they are evaluated: by their inputs, and where
    those are alike by what a decoder predicts, which is as long as them in other tasks."""
    names = [name for name in ("input_ids", "labels") if name in dataset.column_names]
    rows = dataset.select_columns(names).with_format("arrow")[:]
    lengths = [list_value_length(rows[name]).to_pylist() for name in names]
    keys = list(zip(*lengths, strict=True))
    return sorted(range(len(keys)), key=lambda index: keys[index], reverse=True)


def examples_of(columns: dict[str, list[Any]]) -> list[Example]:
    """Rows of a data set, read as columns, as examples."""
    rows = zip(*columns.values(), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in rows]
