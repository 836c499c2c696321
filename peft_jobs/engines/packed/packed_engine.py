"""PackedEngine: several trials at a time on a resident base, in batched steps.

A trial that cannot be packed goes to the solo engine when its turn has come, on the same resident
base: jobs begin in the order in which they came, and what runs is drained before the kind changes,
so neither kind starves.
"""

import logging
import traceback
from collections.abc import Sequence
from typing import Any

from peft_jobs.device.lost_device import result_of, telling_lost_devices
from peft_jobs.device.memory import is_out_of_memory, release
from peft_jobs.engines.packed.composition import Composition
from peft_jobs.engines.packed.eligibility import parts_of, unpackable
from peft_jobs.engines.packed.packed_trial import Slot
from peft_jobs.engines.packed.queue import Waiting, WaitingLine
from peft_jobs.engines.packed.rounds import Results, Rounds
from peft_jobs.engines.packed.slot_count import MOST, useful_slots
from peft_jobs.engines.solo.solo_engine import SoloEngine
from peft_jobs.errors import SpecError
from peft_jobs.host.job import Inbox, Job, Prepared
from peft_jobs.phases import Phases
from peft_jobs.spec import TrialSpec

log = logging.getLogger(__name__)


class PackedEngine:
    """See `peft_jobs.host.job.Engine`. Runs up to `num_slots` trials in one step."""

    def __init__(
        self,
        cache_dir: str,
        num_slots: int | None = None,
        threads: int | None = None,
        score_test: bool = False,
        checkpoint_seconds: float | None = None,
    ) -> None:
        """`num_slots` trials at most are in a step, fewer where that is faster or memory asks for
        it; None is as many as come, and `prepare` finds out how many should. The others are the
        solo engine's options."""
        if num_slots is not None and num_slots < 1:
            raise SpecError(f"engine option num_slots must be >= 1, got {num_slots}")
        self.solo = SoloEngine(cache_dir, threads, score_test, checkpoint_seconds)
        self._wanted = num_slots
        self._most = num_slots or MOST[self.solo.device.type]
        self._fitting: dict[str, int] = {}
        """Slots that memory was enough for, by base, since there were none."""
        self.composition = Composition()
        self.rounds = Rounds(self.composition, self._most)
        self._line = WaitingLine()

    @property
    def slots(self) -> Sequence[Slot]:
        """The trials that run."""
        return self.composition.slots

    @property
    def num_slots(self) -> int:
        """Trials that may run at a time, as far as is known of the resident base."""
        base = self.solo.base
        return self._most if base is None else self._fitting.get(base.key, self._most)

    def prepare(self, spec: TrialSpec, variants: list[TrialSpec]) -> Prepared:
        """The solo engine's, and how many trials at a time are worth it."""
        prepared = self.solo.prepare(spec, variants)
        base, data = self.solo.resident(spec, Phases())
        packable = [v for v in [spec, *variants] if _fit(v, spec) and not unpackable(v, base)]
        if not packable:
            return prepared
        slots = self._wanted or useful_slots(packable[0], base, data)
        return prepared.model_copy(update={"slots": slots})

    def status(self) -> dict[str, Any]:
        """What is resident, and what runs."""
        return {
            **self.solo.status(),
            "engine": "packed",
            "slots": [slot.job.trial for slot in self.slots],
            "num_slots": self.num_slots,
            "width": self.rounds.width,
            "steps": self.rounds.steps,
        }

    @telling_lost_devices()
    def serve(self, inbox: Inbox) -> None:
        """Run jobs until the inbox closes. Raises DeviceLost."""
        try:
            while True:
                self._line.end_cancelled()
                self._admit(inbox)
                if not self.composition.holds(self.slots):
                    continue  # memory was too small for the pack: there are fewer slots now
                if self.slots:
                    self._advance(inbox)
                elif not self._run_alone():
                    return
        finally:
            self.composition.clear()
            self._line = WaitingLine()  # after an error, the host ends those who wait

    def _run_alone(self) -> bool:
        """Give the first in line to the solo engine; False if nobody is there."""
        waiting = self._line.next()
        if waiting is None:
            return False
        job, seen = waiting.job, None
        if waiting.slot is not None:
            seen = waiting.slot.seen
            waiting.slot.forget()
        del waiting  # the slot holds a base, which may have to make room for another
        job.end(job.stopped() if job.cancelled is not None else self.solo.run(job, seen))
        return True

    def _admit(self, inbox: Inbox) -> None:
        """Begin the jobs for which there is room; the first that must wait ends the admission."""
        slots = list(self.slots)
        while len(slots) < self._limit(slots):
            waiting = self._line.next(inbox, block=not slots)
            if waiting is None:
                break
            if waiting.alone or (slots and not _fit(waiting.job.spec, slots[0].spec)):
                self._line.put_back(waiting)
                break
            slot = waiting.slot
            if slot is None or slot.base is not self.solo.base:
                job = waiting.job
                waiting = slot = None  # as in `_run_alone`
                self.composition.dissolve()
                slot = self._slot(job)
            if slot is None:
                continue
            if len(slots) >= self.composition.room([*slots, slot]):
                self._line.put_back(Waiting(slot.job, slot))
                break
            slots.append(slot)
        if self.composition.holds(slots):
            return
        try:
            self.composition.compose(slots)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            exhausted = True
        else:
            exhausted = False
        if exhausted:  # only here is the error gone, with the tensors that it held
            self._shrink(slots)
        else:
            newcomers = [slot for slot in slots if not slot.has_begun]
            self._end_those({slot: slot.attempted(slot.begin) for slot in newcomers})

    def _limit(self, slots: Sequence[Slot]) -> int:
        """Slots that are of use here and fit."""
        if not slots:
            return self.num_slots
        useful = self.rounds.limit(slots) or self.num_slots
        waiting = sum(slot.reporter.waits for slot in slots)
        return min(self.num_slots, useful + waiting, self.composition.room(slots))

    def _slot(self, job: Job) -> Slot | None:
        """A slot for the job, on the bare base; None if it is to run alone, or could not begin."""
        phases = Phases("load", "quantize", "tokenize", "train", "evaluate")
        try:
            base, data = self.solo.resident(job.spec, phases)
            reason = unpackable(job.spec, base)
            if reason is not None:
                log.info("trial %d runs alone: %s", job.trial, reason)
                self._line.put_back(Waiting(job, alone=True))
                return None
            return Slot(
                job,
                base,
                data,
                parts_of(job.spec, base.model),
                phases,
                self.solo.provenance(job.spec, base, data) | {"engine": "packed"},
                self.solo.checkpoint_seconds,
                self.solo.score_test,
            )
        except Exception as error:  # the trial's edge: its error is its result
            log.warning("trial %d could not begin", job.trial, exc_info=error)
            job.end(result_of(error, "".join(traceback.format_exception(error))))
            return None

    def _advance(self, inbox: Inbox) -> None:
        """One round of the slots that may go on, and all that follows from it."""
        decided = [slot for slot in self.slots if slot.reporter.waits and slot.job.decided]
        failed = {slot: slot.attempted(slot.reporter.settle) for slot in decided}
        over = [slot for slot in self.slots if slot.is_over and not slot.reporter.waits]
        if self._end_those(failed):
            return
        if over:
            self._finish(over)
            return
        ready = [slot for slot in self.slots if not slot.reporter.waits]
        if ready:
            self._round(ready)
        else:
            self._await_change(inbox)

    def _await_change(self, inbox: Inbox) -> None:
        """Block until a slot may go on, or a job has come for a free one."""

        def changed() -> bool:
            if len(self.slots) < self.num_slots and self._line.take(inbox):
                return True
            return self._line.has_cancelled or any(slot.job.decided for slot in self.slots)

        self.slots[0].job.wait_until(changed)

    def _round(self, ready: Sequence[Slot]) -> None:
        results, fits = self.rounds.make(ready)
        ended = self._end_those(results)
        if not fits:
            self._shrink([slot for slot in self.slots if slot not in ended])

    def _shrink(self, slots: Sequence[Slot]) -> None:
        """Memory ran out with these: the newest waits, as it is, and there is one slot less.

        The only one goes to the solo engine, whose ladder asks for less; what it has reported is
        not reported again.
        """
        *others, newest = slots
        log.warning("out of memory with %d trials: trial %d waits", len(slots), newest.job.trial)
        self.composition.keep(others)
        if others:
            self._fitting[newest.base.key] = len(others)
        else:
            newest.job.checkpoint = newest.reporter.loop.saver.latest or newest.job.checkpoint
        self._line.put_back(Waiting(newest.job, newest, alone=not others))
        release(newest.base.device)

    def _end_those(self, results: Results) -> set[Slot]:
        """End the slots that have a result; gives them."""
        ended: Results = {slot: result for slot, result in results.items() if result is not None}
        self._leave(ended)
        return set(ended)

    def _finish(self, over: Sequence[Slot]) -> None:
        """End trials that are over, and free their slots."""
        self.composition.measure()
        for split in ("validation", "test"):
            lacking = [slot for slot in over if slot.scoring.lacks(split)]
            self.rounds.evaluations.make(lacking, split)
        ends: Results = {}
        for slot in over:
            failed = slot.attempted(slot.complete)
            ends[slot] = failed or slot.result()
        self._leave(ends)

    def _leave(self, ends: Results) -> None:
        if not ends:
            return
        left = [slot for slot in self.slots if slot not in ends]
        for slot in ends:
            slot.forget()
        self.composition.keep(left)
        if not left:
            self.solo.verify()
            self._fitting.clear()  # who comes now may need less memory than those who were here
            self.rounds.most.clear()
        for slot, result in ends.items():
            slot.job.end(result)


def _fit(spec: TrialSpec, other: TrialSpec) -> bool:
    """Whether two trials see the same base and data in the same precision."""
    same = ("model", "quantization", "task", "data")
    precision = ("bf16", "tf32")
    return all(getattr(spec, name) == getattr(other, name) for name in same) and all(
        getattr(spec.training, name) == getattr(other.training, name) for name in precision
    )
