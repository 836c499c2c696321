"""One attempt of a trial in a slot: from where it starts to its result.

What the solo engine does around its Trainer happens here around packed steps, with the same
reporter, checkpoints and files; a slot never blocks, it `waits`.
"""

from peft_jobs import notices  # noqa: F401  # isort: skip  # before bitsandbytes speaks

import logging
import traceback
from collections.abc import Callable
from typing import Any

from peft_jobs import attempt
from peft_jobs.base import Base
from peft_jobs.evaluation import score
from peft_jobs.job import Job
from peft_jobs.keyed import Clock
from peft_jobs.ladder import Ladder
from peft_jobs.methods import METHODS
from peft_jobs.packed.export import save_adapter
from peft_jobs.packed.feed import Feed
from peft_jobs.packed.pack import Pack
from peft_jobs.packed.packable import Parts, initial_values
from peft_jobs.packed.tenant import Captured, Tenant, from_snapshot, to_snapshot
from peft_jobs.phases import Phases
from peft_jobs.reporting import Loop, Reporter, StepEnd, measure
from peft_jobs.result import Progress, State, TrialResult, finite
from peft_jobs.resume import find_start
from peft_jobs.saving import Saver
from peft_jobs.seen import Seen
from peft_jobs.tasks import TASKS
from peft_jobs.tokenized import TokenizedData
from peft_jobs.training import SampleOrder

log = logging.getLogger(__name__)


class Slot:
    """A trial that is trained in a pack. Its parameters are in `captured`, or in a `tenant`."""

    def __init__(
        self,
        job: Job,
        base: Base,
        data: TokenizedData,
        parts: Parts,
        phases: Phases,
        provenance: dict[str, Any],
        checkpoint_seconds: float | None,
        score_test: bool,
    ) -> None:
        self.job, self.spec, self.base, self.data, self.parts = job, job.spec, base, data, parts
        job.directory.mkdir(parents=True, exist_ok=True)
        self.phases, self.seen, self.score_test = phases, Seen(), score_test
        self.num_steps = self.spec.training.total_steps(len(data.train))
        self.tenant: Tenant | None = None
        self.loss = 0.0
        """Of the optimizer step, as far as it has come."""
        self.peaks: dict[str, int] = {}
        start = find_start(job, job.checkpoint)
        self.captured = Captured(initial_values(self.spec, parts, base.model))
        if start is not None:
            places, state = self.captured.values, start.state
            self.captured = from_snapshot(start.tensors, places, state.step, state.scheduler)
            phases.add(state.seconds)
        self.seen.go_back(None if start is None else start.state)
        self.found: dict[str, Any] = {"provenance": provenance}
        provenance["resumed_from"] = self.seen.step
        self.found["trainable_parameters"] = sum(v.numel() for v in self.captured.values.values())
        training = self.spec.training
        order = SampleOrder(
            self.spec.seed,
            len(data.train),
            self.num_steps * training.samples_per_step,
            first=self.seen.samples,
        )
        task, pad_token_id = TASKS[self.spec.task.type], base.tokenizer.pad_token_id
        self.feed = Feed(task, data.train, iter(order), training, pad_token_id, self.seen.step)
        self.reporter = Reporter(
            Loop(
                spec=self.spec,
                task=task,
                train_dataset=data.train,
                pad_token_id=pad_token_id,
                device=base.device,
                clock=Clock(),
                evaluate=self._evaluate,
                report=self._report,
                job=job,
                phases=phases,
                seen=self.seen,
                saver=Saver(job, checkpoint_seconds),
                ladder=Ladder(self.spec, base.device),
                start=start,
            )
        )

    @property
    def rank(self) -> int:
        return self.spec.adapter.r

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to train."""
        return self.job.cancelled is not None or self.seen.step >= self.num_steps

    def move_in(self, pack: Pack, number: int) -> None:
        """Take the row `number` of a pack."""
        self.tenant = Tenant(pack, number, self.spec, self.num_steps, self.captured)

    def move_out(self) -> None:
        """Keep what is in the row, which is about to go."""
        if self.tenant is not None:
            self.captured, self.tenant = self.tenant.capture(), None

    def begin(self) -> None:
        """Report again what an earlier attempt may have reported in vain."""
        self.reporter.resume()
        if not self.reporter.waits:
            self.reporter.settle()

    def stepped(self, loss: float) -> None:
        """The optimizer step's gradients are complete; raises Diverged."""
        assert self.tenant is not None
        tenant, rate = self.tenant, self.tenant.learning_rate
        tenant.step()
        self.seen.tokens += self.feed.tokens
        self.reporter.step_ended(
            StepEnd(
                loss=loss,
                learning_rate=rate,
                schedule=tenant.scheduler.state_dict(),
                tensors=lambda: to_snapshot(tenant.capture()),
                is_last=self.seen.step + 1 >= self.num_steps,
            )
        )
        if not self.reporter.waits:
            self.reporter.settle()

    def begin_step_again(self) -> None:
        """The gradients of the present optimizer step are lost: take its batches once more."""
        self.feed.begin_again()
        self.loss = 0.0
        if self.tenant is not None:
            self.tenant.clear_gradients()

    def saw_peak(self, peaks: dict[str, int], num_slots: int, resident_bytes: int) -> None:
        """Remember a pack's memory peak: as it was, and this trial's share of what it added."""
        for name, value in peaks.items():
            share = resident_bytes + max(0, value - resident_bytes) // num_slots
            pack = name.replace("peak_", "pack_peak_")
            self.peaks[pack] = max(value, self.peaks.get(pack, 0))
            self.peaks[name] = max(share, self.peaks.get(name, 0))

    def result(self) -> TrialResult | None:
        """The end of a trial that is over: evaluated and saved, or stopped; None if interrupted."""
        with attempt.logged(self.job.directory):
            if self.job.cancelled is None:
                self._complete()
            self.found |= self._seen()
            if self.job.cancelled is not None:
                return self.job.stopped(**self.found)
            return TrialResult(state=State.COMPLETE, **self.found)

    def failure(self, error: Exception) -> TrialResult:
        """The result of a trial that `error` ended."""
        with attempt.logged(self.job.directory):
            log.error("the trial failed", exc_info=error)
        text = "".join(traceback.format_exception(error))
        return TrialResult.from_error(error, text, **(self.found | self._seen()))

    def attempted(self, act: Callable[[], None]) -> TrialResult | None:
        """None, or the result of a trial that an error in `act` ended."""
        try:
            act()
        except Exception as error:  # the trial's edge: its error is its result
            return self.failure(error)
        return None

    def _seen(self) -> dict[str, Any]:
        return {**self.seen.counts(), "seconds": self.phases.seconds, "memory": self.peaks}

    def _complete(self) -> None:
        if self.seen.evaluated_at != self.seen.step:
            measure(self.reporter.loop)
        if self.score_test and self.data.test is not None:
            with self.phases.phase("evaluate"):
                self.seen.metrics |= finite(self._score(self.data.test, "test"))
        assert self.tenant is not None
        with self.phases.phase("save"):
            task, adapter = self.spec.task, self.spec.adapter
            config = METHODS[adapter.method].peft_config(adapter, self.parts.adapted, task)
            config.modules_to_save = sorted(self.parts.whole) or None  # type: ignore[attr-defined]
            values = self.tenant.values()
            self.found["adapter"] = save_adapter(values, config, self.base, self.job.directory)

    def _evaluate(self) -> dict[str, float]:
        return self._score(self.data.validation, "validation")

    def _score(self, rows: Any, split: str) -> dict[str, float]:
        assert self.tenant is not None
        with self.tenant.pack.evaluating(self.tenant.slot):
            return score(self.base.model, self.base, self.spec, rows, split)

    def _report(self, progress: Progress) -> None:
        attempt.append(self.job.directory, progress)
        self.job.report(progress)
