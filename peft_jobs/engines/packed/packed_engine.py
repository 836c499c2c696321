"""PackedEngine: several trials at a time on a resident base, in batched steps.

A trial that cannot be packed goes to the solo engine when its turn has come, on the same resident
base: jobs begin in the order in which they came, and what runs is drained before the kind changes,
so neither kind starves.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from peft_jobs.activity import at_stage
from peft_jobs.base.loading import Base
from peft_jobs.device.lost_device import raising_device_lost
from peft_jobs.device.slot_room import available_bytes
from peft_jobs.engines.packed.admission import Admission, alike
from peft_jobs.engines.packed.composition import Composition
from peft_jobs.engines.packed.eligibility import unpackable
from peft_jobs.engines.packed.packed_trial import PackedTrial
from peft_jobs.engines.packed.queue import WaitingLine
from peft_jobs.engines.packed.rounds import Results, Rounds
from peft_jobs.engines.packed.slot_count import (
    max_slots,
    predicted_slots,
    seconds_per_step,
    useful_slots,
)
from peft_jobs.engines.solo.solo_engine import SoloEngine
from peft_jobs.engines.solo.thread_times import base_step_seconds
from peft_jobs.errors import SpecError
from peft_jobs.host.job import Inbox, Job, Prepared
from peft_jobs.phases import Phases
from peft_jobs.spec import TrialSpec
from peft_jobs.training.attempt import Ending, ended


class PackedEngine:
    """See `peft_jobs.host.job.Engine`. Runs up to `num_slots` trials in one step."""

    def __init__(
        self,
        cache_dir: str,
        num_slots: int | None = None,
        threads: int | None = None,
        score_test: bool = False,
        checkpoint_seconds: float | None = None,
        try_threads: bool = False,
        yield_threads: bool = False,
    ) -> None:
        """`num_slots` trials at most are in a step, fewer where that is faster or memory asks for
        it; None is as many as come, and `prepare` finds out how many should. The others are the
        solo engine's options."""
        if num_slots is not None and num_slots < 1:
            raise SpecError(f"engine option num_slots must be >= 1, got {num_slots}")
        self._wanted = num_slots
        solo = SoloEngine(
            cache_dir,
            threads,
            score_test,
            checkpoint_seconds,
            try_threads=try_threads,
            yield_threads=yield_threads,
        )
        self.assemble(solo, Composition())

    def assemble(self, solo: SoloEngine, composition: Composition) -> None:
        """Work with this solo engine, whose base is used, and this composition; before trials."""
        most = self._wanted or max_slots(solo.device)
        self.solo, self.composition = solo, composition
        self.rounds = Rounds(composition, most)
        self.admission = Admission(solo, composition, self.rounds, most)

    @property
    def trials(self) -> Sequence[PackedTrial]:
        """The trials that run."""
        return self.composition.trials

    @property
    def num_slots(self) -> int:
        """Trials that may run at a time, as far as is known of the resident base."""
        return self.admission.num_slots

    def prepare(self, spec: TrialSpec, variants: list[TrialSpec]) -> Prepared:
        """The solo engine's, and how many trials at a time are worth it, of those that fit."""
        prepared = self.solo.scored(spec, variants)
        base, data = self.solo.resident(spec, Phases())
        packable = [v for v in [spec, *variants] if alike(v, spec) and not unpackable(v, base)]
        worth, measure = 1, partial(base_step_seconds, spec, base, data)
        if packable:
            with at_stage("slots"):
                most = self._slots_with_room(packable[0], base, prepared)
                worth = self._wanted or useful_slots(packable[0], base, data, most)
            measure = partial(seconds_per_step, packable[0], base, data, worth)
        prepared = prepared.model_copy(update={"slots": worth})
        return self.solo.thread_times.added(prepared, spec, base, measure, worth)

    def _slots_with_room(self, spec: TrialSpec, base: Base, prepared: Prepared) -> int:
        """Slots of trials like `spec` for which there is memory, as predicted; it begins with so
        many. As many as are allowed where that cannot be told."""
        most = self._wanted or max_slots(base.device)
        assert prepared.lengths is not None
        slots = predicted_slots(spec, prepared.device, prepared.lengths)
        if slots is None:
            return most
        room = self.composition.expect(base, slots.beside)
        return min(most, room.slots(available_bytes(base.device), slots.state_bytes))

    def status(self) -> dict[str, Any]:
        """What is resident, and what runs."""
        return {
            **self.solo.status(),
            "engine": "packed",
            "slots": [trial.job.trial for trial in self.trials],
            "num_slots": self.num_slots,
            "width": self.rounds.width,
            "steps": self.rounds.steps,
        }

    def use_threads(self, number: int) -> None:
        """Begin the next trials with so many threads."""
        self.solo.use_threads(number)

    @raising_device_lost()
    def serve(self, inbox: Inbox) -> None:
        """Run jobs until the inbox closes. Raises DeviceLost."""
        with self.solo.threads.while_trials_run():
            self._serve(inbox)

    def _serve(self, inbox: Inbox) -> None:
        try:
            while True:
                self.admission.line.end_cancelled()
                self._begin(self.admission.admit(inbox))
                self.solo.attempt_options.pace.num_trials = max(1, len(self.trials))
                if not self.composition.holds(self.trials):
                    continue  # memory was too small for the pack: there are fewer trials now
                if self.trials:
                    self._advance(inbox)
                elif not self._run_alone():
                    return
        finally:
            self.composition.clear()
            self.admission.line = WaitingLine()  # after an error, the host ends those who wait
            self.solo.attempt_options.writer.finish()

    def _run_alone(self) -> bool:
        """Give the first in line to the solo engine; False if nobody is there."""
        waiting = self.admission.line.next()
        if waiting is None:
            return False
        job, counts = waiting.job, None
        if waiting.trial is not None:
            self.solo.attempt_options.writer.finish()  # before the same files are written again
            counts = waiting.trial.counts
            waiting.trial.forget()
        del waiting  # the trial holds a base, which may have to make room for another
        job.end(job.stopped() if job.cancelled is not None else self.solo.run(job, counts))
        return True

    def _begin(self, newcomers: Sequence[PackedTrial]) -> None:
        self._end_those({trial: trial.attempted(trial.begin) for trial in newcomers})

    def _advance(self, inbox: Inbox) -> None:
        """One round of the trials that may go on, and all that follows from it."""
        self.solo.attempt_options.writer.check()
        heard = [trial for trial in self.trials if trial.reporter.has_news]
        if self._end_those({trial: trial.attempted(trial.reporter.settle) for trial in heard}):
            return
        over = [trial for trial in self.trials if trial.may_end]
        if over:
            self._finish(over)
            return
        ready = [trial for trial in self.trials if not (trial.is_over or trial.reporter.waits)]
        if ready:
            self._round(ready)
        else:
            self._await_change(inbox)

    def _await_change(self, inbox: Inbox) -> None:
        """Block until a trial may go on, or a job has come for a free one."""

        def changed() -> bool:
            if len(self.trials) < self.num_slots and self.admission.line.take(inbox):
                return True
            return self.admission.line.has_cancelled or any(
                trial.reporter.has_news or trial.may_end for trial in self.trials
            )

        self.trials[0].job.wait_until(changed)

    def _round(self, ready: Sequence[PackedTrial]) -> None:
        results, fits = self.rounds.make(ready)
        ended = self._end_those(results)
        if not fits:
            self.admission.shrink([trial for trial in self.trials if trial not in ended])

    def _end_those(self, results: Results) -> set[PackedTrial]:
        """End the trials that have a result; gives them."""
        failed = {trial: result for trial, result in results.items() if result is not None}
        self._leave(
            {t: partial(ended, t.job, t.draft, None, result) for t, result in failed.items()}
        )
        return set(failed)

    def _finish(self, over: Sequence[PackedTrial]) -> None:
        """End trials that are over, and free their slots."""
        self.composition.measure()
        for split in ("validation", "test"):
            lacking = [trial for trial in over if trial.scoring.lacks(split)]
            self.rounds.evaluations.make(lacking, split)
        self._leave({trial: trial.end() for trial in over})

    def _leave(self, ends: Mapping[PackedTrial, Ending]) -> None:
        if not ends:
            return
        left = [trial for trial in self.trials if trial not in ends]
        self.composition.keep(left)
        if not left:
            self.solo.verify()
            self.admission.forget_limits()
        for trial, ending in ends.items():
            self.solo.attempt_options.writer.tell(partial(_tell, trial.job, ending))


def _tell(job: Job, ending: Ending) -> None:
    try:
        job.end(ending())
    finally:
        job.end(None)  # the device was lost, which `check` raises: the trial goes on elsewhere
