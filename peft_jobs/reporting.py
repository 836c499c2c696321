"""What a training run needs and tells: its counts, its reports, its evaluations at the rungs."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback

from peft_jobs.errors import Diverged
from peft_jobs.job import Job
from peft_jobs.keyed import Clock
from peft_jobs.phases import Phases
from peft_jobs.result import Progress, finite
from peft_jobs.spec import TrialSpec
from peft_jobs.tasks import Task


@dataclass
class Seen:
    """How far a trial has come; filled in as it goes, so that an error leaves it readable."""

    step: int = 0
    samples: int = 0
    tokens: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    """The latest of each name."""
    evaluated_at: int | None = None
    """Step of the last evaluation."""

    def counts(self) -> dict[str, Any]:
        """As the fields of a TrialResult."""
        return {
            "step": self.step,
            "samples": self.samples,
            "tokens": self.tokens,
            "metrics": dict(self.metrics),
        }


@dataclass(frozen=True)
class Loop:
    """What a training run needs beside the model."""

    spec: TrialSpec
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
    seen: Seen


def measure(loop: Loop) -> dict[str, float]:
    """Evaluate now and remember the metrics. Raises Diverged if one is not finite."""
    seen = loop.seen
    with loop.phases.phase("evaluate"):
        metrics = loop.evaluate()
    seen.metrics.update(finite(metrics))
    seen.evaluated_at = seen.step
    return metrics


class Reporter(TrainerCallback):
    """Reports after steps, evaluates and waits at rungs, stops a cancelled trial."""

    def __init__(self, loop: Loop, take_step: Callable[[], float]) -> None:
        """`take_step` gives the loss of the optimizer step just made."""
        self.loop, self.take_step = loop, take_step
        self.rungs = list(self.loop.spec.evaluation.rungs)
        self.losses: list[float] = []
        self.learning_rate = 0.0

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.learning_rate = float(kwargs["optimizer"].param_groups[0]["lr"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        loop, seen = self.loop, self.loop.seen
        loss = self.take_step()
        seen.step += 1
        seen.samples += loop.spec.training.samples_per_step
        if not math.isfinite(loss):
            raise Diverged(f"train/loss is {loss} at step {seen.step}")
        self.losses.append(loss)
        reached = [rung for rung in self.rungs if seen.samples >= rung]
        if loop.job.cancelled is None and reached:
            self.rungs = self.rungs[len(reached) :]
            metrics = self._training_metrics() | measure(loop)
            for rung in reached:
                self._report(metrics, rung)
            with loop.phases.phase("wait"):
                loop.job.await_decision()
        elif loop.job.cancelled is None and self._due(last=seen.step == state.max_steps):
            self._report(self._training_metrics(), None)
        if loop.job.cancelled is not None:
            control.should_training_stop = True

    def _due(self, last: bool) -> bool:
        return last or self.loop.seen.step % self.loop.spec.training.logging_steps == 0

    def _training_metrics(self) -> dict[str, float]:
        found = {
            "train/loss": sum(self.losses) / len(self.losses),
            "train/learning_rate": self.learning_rate,
        }
        self.losses = []
        self.loop.seen.metrics.update(found)
        return found

    def _report(self, metrics: dict[str, float], rung: int | None) -> None:
        seen = self.loop.seen
        self.loop.report(
            Progress(
                step=seen.step,
                samples=seen.samples,
                tokens=seen.tokens,
                metrics=metrics,
                rung=rung,
            )
        )
