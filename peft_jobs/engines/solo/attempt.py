"""Trains one attempt of a trial alone on a resident base, from where it starts to its adapter.

`train_once` is one pass through a trial. Should GPU memory run out in training, another one follows
with smaller settings, from the attempt's latest checkpoint.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from datasets import Dataset
from peft import PeftModel
from transformers import set_seed

from peft_jobs.base.loading import Base
from peft_jobs.base.positions import check_virtual_tokens
from peft_jobs.data.tokenized import TokenizedData
from peft_jobs.device.memory import peak_memory
from peft_jobs.device.precision import use_tf32
from peft_jobs.engines.solo.trainer import train
from peft_jobs.evaluation.scoring import score
from peft_jobs.host.job import Job
from peft_jobs.host.result import Progress, finite
from peft_jobs.methods import METHODS, clock_of, save_adapter
from peft_jobs.phases import Phases
from peft_jobs.spec import TrialSpec
from peft_jobs.tasks import TASKS
from peft_jobs.training import attempt_files
from peft_jobs.training.checkpoints import Saver, Start, find_start, restored
from peft_jobs.training.counts import Counts
from peft_jobs.training.oom_ladder import OomLadder
from peft_jobs.training.reporter import Loop


class Run:
    """One attempt; `counts` and `found` are filled in as far as it comes."""

    def __init__(
        self,
        job: Job,
        base: Base,
        data: TokenizedData,
        phases: Phases,
        counts: Counts,
        found: dict[str, Any],
        *,
        checkpoint_seconds: float | None,
        score_test: bool,
    ) -> None:
        """`found` takes fields of the attempt's result; it holds its provenance already."""
        self.job, self.base, self.data = job, base, data
        self.phases, self.counts, self.found = phases, counts, found
        self.score_test = score_test
        self.saver = Saver(job, checkpoint_seconds)
        self.start = find_start(job, job.checkpoint)
        rungs = () if self.start is None else self.start.state.ladder
        self.ladder = OomLadder(job.spec, base.device, rungs)

    def to_end(self) -> None:
        """Train, evaluate and save; returns early if the job is cancelled.

        Raises whatever goes wrong; OutOfMemory when no smaller settings are left.
        """
        start = self.start
        self.found["memory_ladder"] = self.ladder.rungs
        self.found["provenance"]["resumed_from"] = 0 if start is None else start.state.step
        if start is not None:
            self.phases.add(start.state.seconds)
        while not self.train_once(start):
            start = find_start(self.job, self.saver.latest or self.job.checkpoint)

    def train_once(self, start: Start | None) -> bool:
        """One pass through a trial, from `start`; returns False if memory ran out in training."""
        with self._measured(), self._attached(self.ladder.spec) as model:
            loop = self._loop(model, self._restored(model, start))
            self.found["trainable_parameters"] = model.get_nb_trainable_parameters()[0]
            if self.ladder.tried("train", self.counts, partial(_train, model, loop)) is None:
                return False
            if self.job.cancelled is None:
                with self.phases.phase("evaluate"):
                    self.counts.metrics |= self._test_metrics(model)
                with self.phases.phase("save"):
                    self.found["adapter"] = save_adapter(
                        model, self.job.directory, self.data.classes
                    )
        return True

    @contextmanager
    def _measured(self) -> Iterator[None]:
        """Put the block's memory peaks into `found`, also when it raises."""
        with peak_memory(self.base.device) as self.ladder.peaks:
            try:
                yield
            finally:
                self.found["memory"] = self.ladder.peaks()

    @contextmanager
    def _attached(self, spec: TrialSpec) -> Iterator[PeftModel]:
        """A fresh adapter on the base for as long as the block lasts."""
        check_virtual_tokens(self.base, spec, self.data)
        method = METHODS[spec.adapter.method]
        set_seed(spec.seed)
        use_tf32(spec.training)
        with self.phases.phase("attach"):
            model = method.attach(self.base, spec, rows=self.data.train)
        try:
            yield model
        finally:
            with self.phases.phase("attach"):
                method.detach(model)

    def _restored(self, model: PeftModel, start: Start | None) -> Start | None:
        """`start`, with model, clock and counts where it was left."""
        with self.phases.phase("attach"):
            start = restored(model, start)
        self.counts.go_back(None if start is None else start.state)
        if start is None:
            self.found["provenance"]["resumed_from"] = 0
        training = self.ladder.spec.training
        clock_of(model).micro_step = self.counts.step * training.gradient_accumulation_steps
        return start

    def _loop(self, model: PeftModel, start: Start | None) -> Loop:
        def report(progress: Progress) -> None:
            attempt_files.append(self.job.directory, progress)
            self.job.report(progress)

        return Loop(
            spec=self.ladder.spec,
            task=TASKS[self.job.spec.task.type],
            train_dataset=self.data.train,
            pad_token_id=self.base.tokenizer.pad_token_id,
            device=self.base.device,
            clock=clock_of(model),
            evaluate=partial(self._scored, model, self.data.validation),
            report=report,
            job=self.job,
            phases=self.phases,
            counts=self.counts,
            saver=self.saver,
            ladder=self.ladder,
            start=start,
        )

    def _scored(
        self, model: PeftModel, rows: Dataset, split: str = "validation"
    ) -> dict[str, float]:
        return self.ladder.measured(
            self.counts, lambda spec: score(model, self.base, spec, rows, split)
        )

    def _test_metrics(self, model: PeftModel) -> dict[str, float]:
        if not self.score_test or self.data.test is None:
            return {}
        return finite(self._scored(model, self.data.test, "test"))


def _train(model: PeftModel, loop: Loop, _spec: TrialSpec) -> bool:
    train(model, loop)
    return True
