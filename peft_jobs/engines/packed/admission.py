"""Admission: which of the jobs that wait begin now, as far as memory and speed allow.

Jobs begin in the order in which they came. One that cannot be packed, or that sees another base or
other data than the trials that run, waits until they are done.
"""

import logging
import traceback
from collections.abc import Sequence

from peft_jobs.device.lost_device import result_of
from peft_jobs.device.memory import RanOut, release, tried
from peft_jobs.engines.packed.composition import Composition
from peft_jobs.engines.packed.eligibility import unpackable
from peft_jobs.engines.packed.packed_trial import PackedTrial
from peft_jobs.engines.packed.parts import parts_of
from peft_jobs.engines.packed.queue import Waiting, WaitingLine
from peft_jobs.engines.packed.rounds import Rounds
from peft_jobs.engines.solo.solo_engine import SoloEngine
from peft_jobs.host.job import Inbox, Job
from peft_jobs.spec import TrialSpec
from peft_jobs.training.attempt import ResultDraft

log = logging.getLogger(__name__)


class Admission:
    """Lets jobs into the pack, and out of it where memory is too small for all of them."""

    def __init__(
        self, solo: SoloEngine, composition: Composition, rounds: Rounds, max_trials: int
    ) -> None:
        self.solo, self.composition, self.rounds = solo, composition, rounds
        self.line = WaitingLine()
        self._max_trials = max_trials
        self._fitting: dict[str, int] = {}
        """Trials that memory was enough for, by base, since there were none."""

    @property
    def num_slots(self) -> int:
        """Trials that may run at a time, as far as is known of the resident base."""
        base = self.solo.base
        known = self._max_trials
        return known if base is None else self._fitting.get(base.key, known)

    def forget_limits(self) -> None:
        """Nobody runs any more: who comes now may need less memory than those who were here."""
        self._fitting.clear()
        self.rounds.most.clear()

    def admit(self, inbox: Inbox) -> list[PackedTrial]:
        """Put the jobs for which there is room into the pack; those that have not begun yet.

        The first job that must wait ends the admission.
        """
        trials = list(self.composition.trials)
        while len(trials) < self._limit(trials):
            waiting = self.line.next(inbox, block=not trials)
            if waiting is None:
                break
            if waiting.alone or (trials and not alike(waiting.job.spec, trials[0].spec)):
                self.line.put_back(waiting)
                break
            trial = waiting.trial
            if trial is None or trial.base is not self.solo.base:
                job = waiting.job
                if trial is not None:
                    job.checkpoint = trial.latest_checkpoint()
                waiting = trial = None  # they hold a base, which may have to make room for another
                with self.composition.bare():
                    trial = self._packed(job)
            if trial is None:
                continue
            if len(trials) >= self.composition.room([*trials, trial]):
                self.line.put_back(Waiting(trial.job, trial))
                break
            trials.append(trial)
        if self.composition.holds(trials):
            return []
        if isinstance(tried(lambda: self.composition.compose(trials, self.num_slots)), RanOut):
            self.shrink(trials)
            return []
        return [trial for trial in trials if not trial.has_begun]

    def _limit(self, trials: Sequence[PackedTrial]) -> int:
        """Trials that are of use here and fit."""
        if not trials:
            return self.num_slots
        useful = self.rounds.limit(trials) or self.num_slots
        waiting = sum(trial.reporter.waits for trial in trials)
        limit = min(self.num_slots, useful + waiting)
        if len(trials) >= limit:
            return limit  # a device is asked for its memory only where it matters
        return min(limit, self.composition.room(trials))

    def _packed(self, job: Job) -> PackedTrial | None:
        """A trial for the job, on the bare base; None if it is to run alone, or could not begin."""
        draft = ResultDraft()
        try:
            base, data = self.solo.resident(job.spec, draft.phases)
            reason = unpackable(job.spec, base)
            if reason is not None:
                log.info("trial %d runs alone: %s", job.trial, reason)
                self.line.put_back(Waiting(job, alone=True))
                return None
            draft.provenance = self.solo.provenance(job.spec, base, data) | {"engine": "packed"}
            parts = parts_of(job.spec, base.model)
            return PackedTrial(job, base, data, parts, draft, self.solo.attempt_options)
        except Exception as error:  # the trial's edge: its error is its result
            log.warning("trial %d could not begin", job.trial, exc_info=error)
            job.end(result_of(error, "".join(traceback.format_exception(error))))
            return None

    def shrink(self, trials: Sequence[PackedTrial]) -> None:
        """Memory ran out with these: the newest waits, as it is, and there is one trial less.

        The only one goes to the solo engine, whose ladder asks for less; what it has reported is
        not reported again.
        """
        *others, newest = trials
        log.warning("out of memory with %d trials: trial %d waits", len(trials), newest.job.trial)
        self.composition.dissolve()
        self.composition.trials = others
        if others:
            self._fitting[newest.base.key] = len(others)
        else:
            newest.job.checkpoint = newest.latest_checkpoint()
        self.line.put_back(Waiting(newest.job, newest, alone=not others))
        release(newest.base.device)


def alike(spec: TrialSpec, other: TrialSpec) -> bool:
    """Whether two trials see the same base and data in the same precision."""
    same = ("model", "quantization", "task", "data")
    precision = ("bf16", "tf32")
    return all(getattr(spec, name) == getattr(other, name) for name in same) and all(
        getattr(spec.training, name) == getattr(other.training, name) for name in precision
    )
