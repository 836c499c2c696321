"""Loop: what a training run needs beside the model; and how it is evaluated, and found diverged."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset

from peft_jobs.errors import Diverged
from peft_jobs.host.job import Job
from peft_jobs.host.result import Progress
from peft_jobs.phases import Phases
from peft_jobs.randomness import Clock
from peft_jobs.spec import TrialSpec
from peft_jobs.tasks import Task
from peft_jobs.training.checkpoints import Saver, Start
from peft_jobs.training.counts import Counts
from peft_jobs.training.oom_ladder import OomLadder


@dataclass(frozen=True)
class Loop:
    """What a training run needs beside the model."""

    spec: TrialSpec
    """With the memory settings of this run."""
    task: Task[Any]
    train_dataset: Dataset
    pad_token_id: int
    device: torch.device
    clock: Clock
    evaluate: Callable[[], dict[str, float]]
    """Validation metrics of the model as it is now."""
    report: Callable[[Progress], None]
    job: Job
    phases: Phases
    counts: Counts
    saver: Saver
    ladder: OomLadder
    start: Start | None = None
    """What the model already holds, and `counts` counts; None at the trial's first step."""


def measure(loop: Loop) -> dict[str, float]:
    """Evaluate now and remember the metrics: those that are finite, and the others' names.

    Raises Diverged if the loss is not finite, or above the spec's limit.
    """
    counts = loop.counts
    with loop.phases.phase("evaluate"):
        metrics = loop.evaluate()
    check_loss(loop, "validation/loss", metrics.get("validation/loss", 0.0))
    found = counts.evaluated(metrics, "validation")
    counts.evaluated_at = counts.step
    return found


def check_loss(loop: Loop, name: str, loss: float) -> None:
    """Raise Diverged if a loss is not finite or above the spec's limit."""
    limit = loop.spec.training.max_loss
    if not math.isfinite(loss):
        raise Diverged(f"{name} is {loss} at step {loop.counts.step}")
    if limit is not None and loss > limit:
        step = loop.counts.step
        raise Diverged(f"{name} is {loss:g} at step {step}, above training.max_loss = {limit:g}")
