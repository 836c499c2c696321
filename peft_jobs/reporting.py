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
from transformers import TrainerCallback

from peft_jobs.checkpoint import CheckpointState
from peft_jobs.errors import Diverged
from peft_jobs.job import Job
from peft_jobs.keyed import Clock
from peft_jobs.ladder import Ladder
from peft_jobs.phases import Phases
from peft_jobs.result import Progress, finite
from peft_jobs.resume import Start
from peft_jobs.saving import Saver
from peft_jobs.seen import Seen
from peft_jobs.spec import TrialSpec
from peft_jobs.tasks import Task
from peft_jobs.training_state import restore_optimizer, snapshot


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
    seen: Seen
    saver: Saver
    ladder: Ladder
    start: Start | None = None
    """What the model already holds, and `seen` counts; None at the trial's first step."""


def measure(loop: Loop) -> dict[str, float]:
    """Evaluate now and remember the metrics. Raises Diverged if one is not finite, or the loss is
    above the spec's limit."""
    seen = loop.seen
    with loop.phases.phase("evaluate"):
        metrics = finite(loop.evaluate())
    check_loss(loop, "validation/loss", metrics.get("validation/loss", 0.0))
    seen.metrics.update(metrics)
    seen.evaluated_at = seen.step
    return metrics


def check_loss(loop: Loop, name: str, loss: float) -> None:
    """Raise Diverged if a loss is not finite or above the spec's limit."""
    limit = loop.spec.training.max_loss
    if not math.isfinite(loss):
        raise Diverged(f"{name} is {loss} at step {loop.seen.step}")
    if limit is not None and loss > limit:
        step = loop.seen.step
        raise Diverged(f"{name} is {loss:g} at step {step}, above training.max_loss = {limit:g}")


Reports = tuple[Progress, ...]


class Reporter(TrainerCallback):
    """Reports after steps, evaluates and waits at rungs, stops a cancelled trial."""

    def __init__(self, loop: Loop, take_step: Callable[[], float]) -> None:
        """`take_step` gives the loss of the optimizer step just made."""
        self.loop, self.take_step = loop, take_step
        self.rungs = list(loop.spec.evaluation.rungs)
        self.losses: list[float] = []
        self.learning_rate = 0.0
        if loop.start is not None:
            state = loop.start.state
            self.rungs, self.losses = list(state.rungs), list(state.losses)
            self.learning_rate = state.learning_rate

    def resume(self) -> None:
        """Before a run that goes on from a checkpoint: make the reports of its step, and wait.

        They may have been lost with the host or the driver, or an interruption may have come
        between the step and them.
        """
        start, seen = self.loop.start, self.loop.seen
        if start is None:
            return
        if not start.state.reports:
            self._visit(lambda reports: start.path, last=False)
        elif start.state.step > seen.reported_at:
            self._report(start.state.reports, start.path)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        start = self.loop.start
        if start is not None:
            state.global_step = start.state.step
            parts = (kwargs["model"], kwargs["optimizer"], kwargs["lr_scheduler"])
            restore_optimizer(*parts, start.tensors, start.state.scheduler)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.learning_rate = float(kwargs["optimizer"].param_groups[0]["lr"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        loop, seen = self.loop, self.loop.seen
        loss = self.take_step()
        seen.step += 1
        seen.samples += loop.spec.training.samples_per_step
        check_loss(loop, "train/loss", loss)
        self.losses.append(loss)

        def save(reports: Reports) -> Path | None:
            with loop.phases.phase("checkpoint"):
                return loop.saver.save(
                    self._state(kwargs["lr_scheduler"].state_dict(), reports),
                    lambda: snapshot(kwargs["model"], kwargs["optimizer"]),
                )

        self._visit(save, last=seen.step == state.max_steps)
        if loop.job.cancelled is not None:
            control.should_training_stop = True

    def _visit(self, save: Callable[[Reports], Path | None], last: bool) -> None:
        """All that happens between two steps; `save` leaves a checkpoint that holds reports."""
        loop, path = self.loop, None
        reports: Reports = ()
        if loop.job.cancelled is None:
            reports = self._measured(last)
            at_rung = any(progress.rung is not None for progress in reports)
            if not last and (at_rung or loop.saver.due()):
                path = save(reports)
            self._report(reports or self._of_checkpoint(path), path)
        if loop.job.cancelled == "interrupted" and path is None and not last:
            path = save(reports)
            self._report(self._of_checkpoint(path), path)

    def _measured(self, last: bool) -> Reports:
        """What there is to report of this step; evaluates if it reaches a rung.

        Nothing if it was reported before: then memory ran out later, and the steps are repeated.
        """
        seen = self.loop.seen
        reached = [rung for rung in self.rungs if seen.samples >= rung]
        self.rungs = self.rungs[len(reached) :]
        regular = last or seen.step % self.loop.spec.training.logging_steps == 0
        if not self.losses or not (reached or regular or seen.step == 1):
            return ()
        metrics = {
            "train/loss": sum(self.losses) / len(self.losses),
            "train/learning_rate": self.learning_rate,
        }
        seen.metrics.update(metrics)
        if reached or regular:
            self.losses = []
        if seen.step <= seen.reported_at:
            return ()
        if reached:
            metrics |= measure(self.loop)
        rungs: list[int | None] = [*reached] or [None]
        return tuple(self._progress(metrics, rung) for rung in rungs)

    def _of_checkpoint(self, path: Path | None) -> Reports:
        """A report for a checkpoint that goes with no other."""
        return () if path is None else (self._progress({}, None),)

    def _report(self, reports: Reports, path: Path | None) -> None:
        """Make the reports, and wait for the decision if they are of a rung."""
        loop, checkpoint = self.loop, None if path is None else str(path)
        for progress in reports:
            loop.report(progress.model_copy(update={"checkpoint": checkpoint}))
            loop.seen.reported_at = max(loop.seen.reported_at, progress.step)
        if any(progress.rung is not None for progress in reports):
            with loop.phases.phase("wait"):
                loop.job.await_decision()

    def _progress(self, metrics: dict[str, float], rung: int | None) -> Progress:
        seen = self.loop.seen
        return Progress(
            step=seen.step,
            samples=seen.samples,
            tokens=seen.tokens,
            metrics=metrics,
            rung=rung,
        )

    def _state(self, schedule: dict[str, Any], reports: Reports) -> CheckpointState:
        seen = self.loop.seen
        return CheckpointState(
            spec=self.loop.job.spec.fingerprint(),
            **seen.counts(),
            evaluated_at=seen.evaluated_at,
            rungs=tuple(self.rungs),
            losses=tuple(self.losses),
            learning_rate=self.learning_rate,
            scheduler=schedule,
            seconds=dict(self.loop.phases.seconds),
            reports=reports,
            ladder=tuple(self.loop.ladder.rungs),
        )
