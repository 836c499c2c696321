"""What a training run tells: its counts, its reports and checkpoints, its evaluations at rungs.

Everything at the end of a step happens in one order: measure, leave a checkpoint, report, wait. So
a report that names a checkpoint names a whole one, and a checkpoint holds the reports that may have
been lost since. Checkpoints are written by another thread: a rung is reported when its own is
whole, and the trial waits there anyway; of a checkpoint between rungs the trial tells later.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from peft_jobs.device.host_copies import HostCopies
from peft_jobs.host.checkpoint import CheckpointState
from peft_jobs.host.result import Progress
from peft_jobs.training.loop import Loop, check_loss, measure


@dataclass(frozen=True)
class StepEnd:
    """An optimizer step that was just made, as a trainer knows it."""

    loss: float
    learning_rate: float
    """Of this step."""
    schedule: dict[str, Any]
    """State of the learning rate's schedule."""
    tensors: Callable[[], HostCopies]
    """Gives a `training_state.snapshot`."""
    is_last: bool


@dataclass(frozen=True)
class _Left:
    """A step of which a checkpoint is left."""

    end: StepEnd
    reports: tuple[Progress, ...]
    holds: bool = True
    """Whether the trial does not go on before the checkpoint is whole."""
    untold: tuple[Progress, ...] = ()
    """Those of `reports` that wait for the checkpoint."""
    lone: Progress | None = None
    """A report for the checkpoint, should it go with no other."""


class Reporter:
    """What happens between two steps of a trial, whoever trains it.

    `step_ended` measures, leaves a checkpoint and reports. While `waits`, the trial must not go on;
    once it `has_news`, `settle` takes them and perhaps ends the pause.
    """

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.rungs = list(loop.spec.evaluation.rungs)
        self.losses: list[float] = []
        self.learning_rate = 0.0
        self._is_undecided = False
        """The pruner has not answered yet."""
        self._left: _Left | None = None
        """Of the checkpoint that is being written."""
        self._next: _Left | None = None
        """That of this step, which begins when the one before is whole."""
        self._unsaved: _Left | None = None
        """The step that an interruption would have to save."""
        if loop.start is not None:
            state = loop.start.state
            self.rungs, self.losses = list(state.rungs), list(state.losses)
            self.learning_rate = state.learning_rate

    @property
    def waits(self) -> bool:
        """Whether the pruner has not answered, or a checkpoint holds the trial up."""
        held = self._left is not None and self._left.holds
        return self._is_undecided or held or self._next is not None

    @property
    def is_writing(self) -> bool:
        """Whether a checkpoint is not whole yet, or nothing was told of it: no trial ends so."""
        return self.loop.saver.is_busy

    @property
    def has_news(self) -> bool:
        """Whether there is something for `settle` to do."""
        if self.is_writing:
            return self.loop.saver.is_done
        return (self._is_undecided and self.loop.job.decided) or self._is_interrupted

    @property
    def _is_interrupted(self) -> bool:
        return self.loop.job.cancelled == "interrupted" and self._unsaved is not None

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
            self._report(reports or (self._progress({}, None),), start.path)

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
        self._unsaved = None
        if loop.job.cancelled is not None:
            self._unsaved = None if end.is_last else _Left(end, ())
            return
        reports, saver = self._measured(end.is_last), loop.saver
        at_rung = any(progress.rung is not None for progress in reports)
        leaves = not end.is_last and saver.seconds is not None
        if leaves and (at_rung or saver.seconds == 0):
            self._leave(_Left(end, reports, untold=reports))
            return
        is_due = leaves and saver.due()
        self._report(reports, None)
        if is_due:
            self._leave(_Left(end, reports, holds=False))
        elif not end.is_last:
            self._unsaved = _Left(end, reports)

    def settle(self) -> None:
        """Tell of a checkpoint that is whole; end the pause if it is over. An interruption that has
        come by now gets its checkpoint: until that is whole, the trial waits again.

        May be called at any time between two steps.
        """
        if self.loop.saver.is_done:
            self._written()
        if self._next is not None and not self.is_writing:
            self._leave(self._next)
        if self._is_undecided and self.loop.job.decided:
            self._is_undecided = False
        if self._is_interrupted and not self.waits and self._unsaved is not None:
            left, self._unsaved = self._unsaved, None
            if self.loop.saver.seconds is not None:
                self._leave(left)

    def finish(self) -> None:
        """Wait for the checkpoint that is being written, if one is, and tell of it."""
        if self.is_writing:
            self._written()

    def _leave(self, left: _Left) -> None:
        """Begin a checkpoint of the present step, or have it begin when the last one is whole."""
        self._next = left if self.is_writing else None
        if self._next is not None:
            return
        with self.loop.phases.phase("checkpoint"):
            self.loop.saver.begin(self._state(left.end.schedule, left.reports), left.end.tensors)
        self._left = replace(left, lone=self._progress({}, None))

    def _written(self) -> None:
        """Tell of the checkpoint that was begun; waits for it."""
        left, self._left = self._left, None
        path = self.loop.saver.take()
        if left is None or left.lone is None:
            return
        lone = () if path is None else (left.lone,)
        self._report(left.untold or lone, path)
        goes_on = self.loop.job.cancelled is None
        if path is None and goes_on and left.lone.step == self.loop.counts.step:
            self._unsaved = _Left(left.end, left.reports)

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

    def _report(self, reports: tuple[Progress, ...], path: Path | None) -> None:
        loop, checkpoint = self.loop, None if path is None else str(path)
        for progress in reports:
            loop.report(progress.model_copy(update={"checkpoint": checkpoint}))
            loop.counts.reported_at = max(loop.counts.reported_at, progress.step)
        if any(progress.rung is not None for progress in reports):
            self._is_undecided = True

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
