"""One attempt of a trial in a slot: from where it starts to its result.

What the solo engine does around its Trainer happens here around packed steps, with the same
reporter, checkpoints and files; a slot never blocks, it `waits`, and the writer's thread writes.
"""

import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from peft_jobs.base.loading import Base
from peft_jobs.data.sample_order import SampleOrder
from peft_jobs.data.tokenized import TokenizedData
from peft_jobs.device.host_copies import HostCopies
from peft_jobs.engines.packed.adapter import adapter_to_save, checkpoint_tensors, from_snapshot
from peft_jobs.engines.packed.micro_batches import Feed
from peft_jobs.engines.packed.pack import Pack
from peft_jobs.engines.packed.parts import Parts, initial_values
from peft_jobs.engines.packed.row import Captured, PackRow, fast_ratios
from peft_jobs.engines.packed.trial_metrics import Scoring
from peft_jobs.host.job import Job
from peft_jobs.host.result import TrialResult
from peft_jobs.phases import Phases
from peft_jobs.randomness import Clock
from peft_jobs.training import attempt_files
from peft_jobs.training.attempt import Attempt, AttemptOptions, Ending, ResultDraft, Save, ended
from peft_jobs.training.checkpoints import Start, find_start
from peft_jobs.training.counts import Counts
from peft_jobs.training.loop import measure
from peft_jobs.training.reporter import Reporter, StepEnd
from peft_jobs.training.schedule import Schedule

log = logging.getLogger(__name__)


class PackedTrial:
    """A trial that is trained in a pack. Its parameters are in `captured`, or in a `row`."""

    def __init__(
        self,
        job: Job,
        base: Base,
        data: TokenizedData,
        parts: Parts,
        draft: ResultDraft,
        options: AttemptOptions,
    ) -> None:
        """`draft` has the trial's provenance already."""
        self.job, self.base, self.data, self.parts, self.draft = job, base, data, parts, draft
        job.directory.mkdir(parents=True, exist_ok=True)
        start = find_start(job, job.checkpoint)
        self.captured: Captured | None = Captured(initial_values(job.spec, parts, base.model))
        start = self._restored(start)
        self.shapes = parts.shapes
        """Of its own tensors."""
        attempt = Attempt(job, base, data, draft, options, start)
        attempt.go_back(None if start is None else start.state)
        draft.trainable_parameters = sum(v.numel() for v in self.captured.values.values())
        self.spec = attempt.spec
        self.scoring = Scoring(attempt)
        self.row: PackRow | None = None
        self._save: Save | None = None
        self.loss = 0.0
        """Of the optimizer step, as far as it has come."""
        self._step_end: StepEnd | None = None
        """Of an optimizer step that was made, and of which nothing was told yet."""
        self.has_begun = False
        self.has_stepped = False
        """Since trials last came or went."""
        training = self.spec.training
        self.num_steps = training.total_steps(len(data.train))
        self.schedule = Schedule(training, self.num_steps, fast_ratios(self.spec, self.shapes))
        num_samples = self.num_steps * training.samples_per_step
        order = SampleOrder(self.spec.seed, len(data.train), num_samples, self.counts.samples)
        pad, step = base.tokenizer.pad_token_id, self.counts.step
        self.feed = Feed(attempt.task, data.train, iter(order), training, pad, step)
        self.reporter = Reporter(attempt.loop(Clock(), self._evaluate, start))

    @property
    def phases(self) -> Phases:
        return self.draft.phases

    @property
    def counts(self) -> Counts:
        return self.draft.counts

    def _restored(self, start: Start | None) -> Start | None:
        """`start`, with its values captured; None, with a warning, if it has other ones."""
        assert self.captured is not None
        if start is None:
            return None
        held = from_snapshot(start.tensors, self.captured.values, start.state.step, self.parts)
        if held is None:
            log.warning("checkpoint %s cannot be used: it trains other parameters", start.path)
            return None
        self.captured = held
        return start

    def latest_checkpoint(self) -> Path | None:
        """This attempt's, which is waited for, or the one that it began at."""
        self.reporter.finish()
        return self.reporter.loop.saver.latest or self.job.checkpoint

    @property
    def may_end(self) -> bool:
        """Whether nothing is left to train, to wait for, or to be told of its checkpoints."""
        reporter = self.reporter
        return self.is_over and not (reporter.waits or reporter.is_writing or reporter.has_news)

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to train."""
        return self.job.cancelled is not None or self.counts.step >= self.num_steps

    def move_in(self, pack: Pack, number: int) -> None:
        """Take the row `number` of a pack."""
        assert self.captured is not None
        trial = self.spec, self.parts, self.schedule, self.captured
        self.row, self.captured, self.has_stepped = PackRow(pack, number, *trial), None, False

    def move_out(self) -> None:
        """Keep what is in the row, which is about to go."""
        if self.row is not None:
            self.captured, self.row = self.row.capture(), None
        self.has_stepped = False

    def move_aside(self) -> None:
        """Keep what it has where it takes no memory of a GPU."""
        self.move_out()
        if self.captured is not None:
            self.captured = self.captured.on_cpu()

    def forget(self) -> None:
        """Nothing of its parameters is needed any more."""
        self.captured = self.row = None

    def begin(self) -> None:
        """Report again what an earlier attempt may have reported in vain; once."""
        self.has_begun = True
        self.reporter.resume()
        if not self.reporter.waits:
            self.reporter.settle()

    def stepped(self, loss: float, ends_step: bool) -> None:
        """A chunk's gradients are there, and with it perhaps the optimizer step's.

        `loss` is the chunk's part of the step's. Where it `ends_step`, `step_rows` of the row and
        `end_step` must follow, at the latest when the slots that reach a rung in the same round are
        evaluated.
        """
        assert self.row is not None
        self.has_stepped = True
        self.loss += loss
        if not ends_step:
            return
        loss, self.loss = self.loss, 0.0
        self.scoring.known.clear()
        self.counts.tokens += self.feed.tokens
        self._step_end = StepEnd(
            loss=loss,
            learning_rate=self.row.learning_rate,
            schedule=self.schedule.state(self.row.steps + 1),
            tensors=self._snapshot,
            is_last=self.counts.step + 1 >= self.num_steps,
        )

    @property
    def is_due(self) -> bool:
        """Whether `end_step` will evaluate."""
        end = self._step_end
        return end is not None and self.reporter.measures(end.loss)

    def end_step(self) -> None:
        """Report the optimizer step that was made, if one was; raises Diverged."""
        end, self._step_end = self._step_end, None
        if end is not None:
            self.reporter.step_ended(end)
            if not self.reporter.waits:
                self.reporter.settle()

    def begin_step_again(self) -> None:
        """The gradients of the present optimizer step are lost: take its batches once more."""
        self.feed.begin_again()
        self.loss = 0.0
        if self.row is not None:
            self.row.clear_gradients()

    def saw_peaks(self, peaks: Mapping[str, int]) -> None:
        """Remember memory peaks by name."""
        for name, value in peaks.items():
            self.draft.memory[name] = max(value, self.draft.memory.get(name, 0))

    def end(self) -> Ending:
        """The end of a trial that is over, for the writer; its row is needed no more."""
        failed = self.attempted(self._end)
        return partial(ended, self.job, self.draft, self._save, failed)

    def _end(self) -> None:
        """What an end needs of the row: final metrics, or an interruption's checkpoint."""
        with attempt_files.logged(self.job.directory):
            if self.job.cancelled is None:
                self._save = self._complete()
            while self.reporter.is_writing or self.reporter.has_news:
                self.reporter.finish()
                self.reporter.settle()

    def failure(self, error: Exception) -> TrialResult:
        """See `ResultDraft.failure`."""
        return self.draft.failure(self.job, error)

    def attempted(self, act: Callable[[], None]) -> TrialResult | None:
        """None, or the result of a trial that an error in `act` ended."""
        try:
            act()
        except Exception as error:  # the trial's edge: its error is its result
            return self.failure(error)
        return None

    def _complete(self) -> Save:
        assert self.row is not None
        if self.scoring.lacks("validation"):
            measure(self.reporter.loop)
        if self.scoring.lacks("test"):
            with self.phases.phase("evaluate"):
                self.counts.evaluated(self.scoring.metrics(self.row, "test"), "test")
        with self.phases.phase("save"):
            directory, classes = self.job.directory, self.data.classes
            return adapter_to_save(self.row, self.parts, self.base, directory, classes)

    def _snapshot(self) -> HostCopies:
        if self.row is not None:
            return self.row.copies(partial(checkpoint_tensors, parts=self.parts))
        assert self.captured is not None
        held = self.captured.on_cpu()
        return HostCopies({}, lambda _: checkpoint_tensors(held, self.parts))

    def _evaluate(self) -> dict[str, float]:
        assert self.row is not None
        return self.scoring.metrics(self.row, "validation")


def slot_of(trial: PackedTrial) -> int:
    """The number of a trial's row in its pack."""
    assert trial.row is not None
    return trial.row.slot
