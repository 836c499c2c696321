"""What a training run tells: its counts, its reports and checkpoints, its evaluations at rungs.

Everything at the end of a step happens in one order: measure, leave a checkpoint, report, wait. So
a report that names a checkpoint names a whole one, and a checkpoint holds the reports that may have
been lost since.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from peft_jobs.errors import Diverged
from peft_jobs.host.checkpoint import CheckpointState
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


@dataclass(frozen=True)
class StepEnd:
    """An optimizer step that was just made, as a trainer knows it."""

    loss: float
    learning_rate: float
    """Of this step."""
    schedule: dict[str, Any]
    """State of the learning rate's schedule."""
    tensors: Callable[[], bytes]
    """A `training_state.snapshot`."""
    is_last: bool


class Reporter:
    """What happens between two steps of a trial, whoever trains it.

    `step_ended` measures, leaves a checkpoint and reports; while `waits`, the trial must not go on
    before its job is `decided`; `settle` then ends the pause.
    """

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.waits = False
        """The pruner has not answered yet."""
        self.rungs = list(loop.spec.evaluation.rungs)
        self.losses: list[float] = []
        self.learning_rate = 0.0
        self._unsaved: tuple[StepEnd, tuple[Progress, ...]] | None = None
        """The step, with its reports, that an interruption would have to save."""
        if loop.start is not None:
            state = loop.start.state
            self.rungs, self.losses = list(state.rungs), list(state.losses)
            self.learning_rate = state.learning_rate

    def resume(self) -> None:
        """Before a run that goes on from a checkpoint: make the reports of its step.

        They may have been lost with the host or the driver, or an interruption may have come
        between the step and them. `settle` follows, as after a step.
        """
        start, counts = self.loop.start, self.loop.counts
        if start is None:
            return
        if start.state.reports:
            if start.state.step > counts.reported_at:
                self._report(start.state.reports, start.path)
        elif self.loop.job.cancelled is None:
            reports = self._measured(last=False)
            self._report(reports or self._of_checkpoint(start.path), start.path)

    def measures(self, loss: float) -> bool:
        """Whether `step_ended` will evaluate, should the present step end with this loss."""
        loop, counts = self.loop, self.loop.counts
        samples = counts.samples + loop.spec.training.samples_per_step
        return (
            math.isfinite(loss)
            and loop.job.cancelled is None
            and counts.step >= counts.reported_at
            and any(samples >= rung for rung in self.rungs)
        )

    def step_ended(self, end: StepEnd) -> None:
        """Count a step, and do what is due after it. Raises Diverged."""
        loop, counts = self.loop, self.loop.counts
        self.learning_rate = end.learning_rate
        counts.step += 1
        counts.samples += loop.spec.training.samples_per_step
        check_loss(loop, "train/loss", end.loss)
        self.losses.append(end.loss)
        reports: tuple[Progress, ...] = ()
        path = None
        if loop.job.cancelled is None:
            reports = self._measured(end.is_last)
            at_rung = any(progress.rung is not None for progress in reports)
            if not end.is_last and (at_rung or loop.saver.due()):
                path = self._save(end, reports)
            self._report(reports or self._of_checkpoint(path), path)
        self._unsaved = None if end.is_last or path is not None else (end, reports)

    def settle(self) -> None:
        """End the pause: an interruption that has come by now gets its checkpoint.

        May be called again, until the next step has begun.
        """
        self.waits = False
        if self.loop.job.cancelled == "interrupted" and self._unsaved is not None:
            path = self._save(*self._unsaved)
            self._report(self._of_checkpoint(path), path)
            self._unsaved = None

    def _save(self, end: StepEnd, reports: tuple[Progress, ...]) -> Path | None:
        with self.loop.phases.phase("checkpoint"):
            return self.loop.saver.save(self._state(end.schedule, reports), end.tensors)

    def _measured(self, last: bool) -> tuple[Progress, ...]:
        """What there is to report of this step; evaluates if it reaches a rung.

        Nothing if it was reported before: then memory ran out later, and the steps are repeated.
        """
        counts = self.loop.counts
        reached = [rung for rung in self.rungs if counts.samples >= rung]
        self.rungs = self.rungs[len(reached) :]
        regular = last or counts.step % self.loop.spec.training.logging_steps == 0
        if not self.losses or not (reached or regular or counts.step == 1):
            return ()
        metrics = {
            "train/loss": sum(self.losses) / len(self.losses),
            "train/learning_rate": self.learning_rate,
        }
        counts.metrics.update(metrics)
        if reached or regular:
            self.losses = []
        if counts.step <= counts.reported_at:
            return ()
        if reached:
            metrics |= measure(self.loop)
        rungs: list[int | None] = [*reached] or [None]
        return tuple(self._progress(metrics, rung) for rung in rungs)

    def _of_checkpoint(self, path: Path | None) -> tuple[Progress, ...]:
        """A report for a checkpoint that goes with no other."""
        return () if path is None else (self._progress({}, None),)

    def _report(self, reports: tuple[Progress, ...], path: Path | None) -> None:
        loop, checkpoint = self.loop, None if path is None else str(path)
        for progress in reports:
            loop.report(progress.model_copy(update={"checkpoint": checkpoint}))
            loop.counts.reported_at = max(loop.counts.reported_at, progress.step)
        self.waits = self.waits or any(progress.rung is not None for progress in reports)

    def _progress(self, metrics: dict[str, float], rung: int | None) -> Progress:
        counts = self.loop.counts
        return Progress(
            step=counts.step,
            samples=counts.samples,
            tokens=counts.tokens,
            metrics=metrics,
            not_finite=() if rung is None else counts.not_finite,
            rung=rung,
        )

    def _state(self, schedule: dict[str, Any], reports: tuple[Progress, ...]) -> CheckpointState:
        counts = self.loop.counts
        return CheckpointState(
            spec=self.loop.job.spec.fingerprint(),
            **counts.as_result_fields(),
            evaluated_at=counts.evaluated_at,
            rungs=tuple(self.rungs),
            losses=tuple(self.losses),
            learning_rate=self.learning_rate,
            scheduler=schedule,
            seconds=dict(self.loop.phases.seconds),
            reports=reports,
            ladder=tuple(self.loop.ladder.rungs),
        )
