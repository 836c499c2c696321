"""Attempt: what one attempt of a trial has, whichever engine trains it.

A ResultDraft takes what is known of its result from the first moment on, so that an attempt that
fails before its base is loaded has a result too.
"""

import logging
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from peft_jobs.base.loading import Base
from peft_jobs.data.tokenized import TokenizedData
from peft_jobs.device.lost_device import result_of
from peft_jobs.device.precision import check_device
from peft_jobs.host.checkpoint import CheckpointState
from peft_jobs.host.job import Job
from peft_jobs.host.result import Progress, State, TrialResult
from peft_jobs.phases import Phases
from peft_jobs.randomness import Clock
from peft_jobs.spec import TrialSpec
from peft_jobs.spec.memory_settings import LadderRung
from peft_jobs.tasks import TASKS
from peft_jobs.training import attempt_files
from peft_jobs.training.checkpoints import Pace, Saver, Start, find_start
from peft_jobs.training.counts import Counts
from peft_jobs.training.loop import Loop
from peft_jobs.training.oom_ladder import OomLadder
from peft_jobs.training.writer import Writer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AttemptOptions:
    """What an engine's options say of each attempt."""

    checkpoint_seconds: float | None = None
    """Between checkpoints, beside those at rungs; None leaves none."""
    score_test: bool = False
    """Add the test split's metrics to each result."""
    writer: Writer = field(default_factory=Writer)
    """Of all attempts of the engine."""
    pace: Pace = field(default_factory=Pace)
    """The same."""


@dataclass
class ResultDraft:
    """What is known of an attempt's result so far."""

    phases: Phases = field(
        default_factory=lambda: Phases("load", "quantize", "tokenize", "train", "evaluate")
    )
    counts: Counts = field(default_factory=Counts)
    provenance: dict[str, Any] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)
    memory_ladder: list[LadderRung] = field(default_factory=list)
    trainable_parameters: int | None = None
    adapter: str | None = None

    def fields(self) -> dict[str, Any]:
        """The fields of a TrialResult, without how it ended."""
        return {
            **self.counts.as_result_fields(),
            "seconds": self.phases.seconds,
            "provenance": self.provenance,
            "memory": self.memory,
            "memory_ladder": self.memory_ladder,
            "trainable_parameters": self.trainable_parameters,
            "adapter": self.adapter,
        }

    def result(self, job: Job) -> TrialResult | None:
        """The end of an attempt that failed in nothing; None if it was interrupted."""
        if job.cancelled is not None:
            return job.stopped(**self.fields())
        return TrialResult(state=State.COMPLETE, **self.fields())

    def failure(self, job: Job, error: Exception) -> TrialResult:
        """The end of an attempt that `error` ended; raises DeviceLost if it ends none."""
        with attempt_files.logged(job.directory):
            log.error("the trial failed", exc_info=error)
        text = "".join(traceback.format_exception(error))
        return result_of(error, text, **self.fields())


Ending = Callable[[], TrialResult | None]
"""Tells how an attempt ended, None for an interruption, when the rest of it has been written."""
Save = Callable[[], str]
"""Writes an adapter; gives its folder's name."""


def ended(
    job: Job, draft: ResultDraft, save: Save | None, failed: TrialResult | None
) -> TrialResult | None:
    """How an attempt ended that has `failed`, or of which nothing but `save` is left to be done;
    None if it was interrupted. In the writer's thread."""
    if failed is not None:
        return failed
    try:
        if save is not None:
            begun = time.perf_counter()
            with attempt_files.logged(job.directory):
                draft.adapter = save()
            draft.phases.add({"save": time.perf_counter() - begun})
    except Exception as error:  # the trial's edge: its error is its result
        return draft.failure(job, error)
    return draft.result(job)


class Attempt:
    """One attempt on a base: where it starts, its memory ladder, its checkpoints and its files."""

    def __init__(
        self,
        job: Job,
        base: Base,
        data: TokenizedData,
        draft: ResultDraft,
        options: AttemptOptions,
        start: Start | None,
    ) -> None:
        """`start` is where it begins; `draft` has its provenance already, and takes the rest.

        Raises SpecError if the device lacks what the trial asks for.
        """
        check_device(job.spec.training, base.device)  # its node may have another GPU than the first
        self.job, self.base, self.data, self.draft = job, base, data, draft
        self.score_test, self.writer = options.score_test, options.writer
        self.saver = Saver(job, options.checkpoint_seconds, options.writer, options.pace)
        rungs = () if job.ladder is None else (job.ladder,)
        self.ladder = OomLadder(
            job.spec, base.device, rungs if start is None else start.state.ladder
        )
        self.task = TASKS[job.spec.task.type]
        draft.memory_ladder = self.ladder.rungs
        draft.provenance["resumed_from"] = 0 if start is None else start.state.step
        if start is not None:
            self.phases.add(start.state.seconds)

    @property
    def spec(self) -> TrialSpec:
        """The trial with the memory settings that it has come to."""
        return self.ladder.spec

    @property
    def phases(self) -> Phases:
        return self.draft.phases

    @property
    def counts(self) -> Counts:
        return self.draft.counts

    def latest_start(self) -> Start | None:
        """Where training begins again: this attempt's last checkpoint, or where it began itself."""
        return find_start(self.job, self.saver.latest or self.job.checkpoint)

    def go_back(self, state: CheckpointState | None) -> None:
        """Count from a checkpoint on, or from the trial's first step."""
        self.counts.go_back(state)
        if state is None:
            self.draft.provenance["resumed_from"] = 0

    def report(self, progress: Progress) -> None:
        """Tell the host, and leave a copy for readers in the attempt's folder."""
        attempt_files.append(self.job.directory, progress)
        self.job.report(progress)

    def loop(
        self, clock: Clock, evaluate: Callable[[], dict[str, float]], start: Start | None
    ) -> Loop:
        """What a training run from `start` needs; `evaluate` gives validation metrics."""
        return Loop(
            spec=self.spec,
            task=self.task,
            train_dataset=self.data.train,
            pad_token_id=self.base.tokenizer.pad_token_id,
            device=self.base.device,
            clock=clock,
            evaluate=evaluate,
            report=self.report,
            job=self.job,
            phases=self.phases,
            counts=self.counts,
            saver=self.saver,
            ladder=self.ladder,
            start=start,
        )
