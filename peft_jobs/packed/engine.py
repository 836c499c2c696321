"""PackedEngine: several trials at a time on a resident base, in batched steps.

A trial that cannot be packed goes to the solo engine when its turn has come, on the same resident
base: jobs begin in the order in which they came, and what runs is drained before the kind changes,
so neither kind starves.
"""

from peft_jobs import notices  # noqa: F401  # isort: skip  # before bitsandbytes speaks

import logging
import math
import time
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from peft_jobs.base import Base
from peft_jobs.job import Inbox, Job, Prepared
from peft_jobs.memory import is_out_of_memory, peak_memory, release
from peft_jobs.methods._base import checkpoint_activations
from peft_jobs.methods._snapshot import Snapshot
from peft_jobs.packed.layout import make_layout
from peft_jobs.packed.pack import Pack
from peft_jobs.packed.packable import dtype_of, parts_of, unpackable
from peft_jobs.packed.slot import Slot
from peft_jobs.packed.stepping import Work, packed_step
from peft_jobs.phases import Phases
from peft_jobs.result import TrialResult
from peft_jobs.solo import SoloEngine
from peft_jobs.spec import TrialSpec
from peft_jobs.tasks import TASKS

log = logging.getLogger(__name__)


class PackedEngine:
    """See `peft_jobs.job.Engine`. Runs up to `num_slots` trials in one step."""

    def __init__(
        self,
        cache_dir: str,
        num_slots: int = 8,
        threads: int | None = None,
        score_test: bool = False,
        checkpoint_seconds: float | None = None,
    ) -> None:
        """`num_slots` trials at most are in a step; the others are the solo engine's options."""
        self.solo = SoloEngine(cache_dir, threads, score_test, checkpoint_seconds)
        self.num_slots = num_slots
        self.slots: list[Slot] = []
        self._waiting: deque[Waiting] = deque()
        """Jobs that were taken and cannot begin before something has ended."""
        self._pack: Pack | None = None
        self._snapshot: Snapshot | None = None
        self._measuring = ExitStack()
        self._peaks: Any = None
        self._resident_bytes = 0
        self.steps = 0

    def prepare(self, spec: TrialSpec, variants: list[TrialSpec]) -> Prepared:
        return self.solo.prepare(spec, variants)

    def status(self) -> dict[str, Any]:
        """What is resident, and what runs."""
        running = [slot.job.trial for slot in self.slots]
        return {**self.solo.status(), "engine": "packed", "slots": running, "steps": self.steps}

    def serve(self, inbox: Inbox) -> None:
        """Run jobs until the inbox closes."""
        try:
            while True:
                self._admit(inbox)
                if self.slots:
                    self._advance(inbox)
                elif self._waiting:
                    job = self._waiting.popleft().job
                    job.end(job.stopped() if job.cancelled else self.solo.run(job))
                else:
                    return
        finally:
            self._compose([])

    def _admit(self, inbox: Inbox) -> None:
        """Begin the jobs for which there is room; the first that must wait ends the admission."""
        newcomers: list[Slot] = []
        while len(self.slots) + len(newcomers) < self.num_slots:
            if self._waiting and self._waiting[0].alone:
                break
            if self._waiting:
                job = self._waiting.popleft().job
            else:
                taken = inbox.take(block=not self.slots and not newcomers)
                if taken is None:
                    break
                job = taken
            others = [*self.slots, *newcomers]
            if others and not _fit(job.spec, others[0].spec):
                self._waiting.appendleft(Waiting(job))
                break
            self._remove_pack()
            slot = self._slot(job)
            if slot is not None:
                newcomers.append(slot)
        if newcomers or (self.slots and self._pack is None):
            self._compose([*self.slots, *newcomers])
        for slot in newcomers:
            self._end_if(slot, slot.attempted(slot.begin))

    def _slot(self, job: Job) -> Slot | None:
        """A slot for the job, on the bare base; None if it is to run alone, or could not begin."""
        if job.cancelled is not None:
            job.end(job.stopped())
            return None
        phases = Phases("load", "quantize", "tokenize", "train", "evaluate")
        try:
            base, data = self.solo.resident(job.spec, phases)
            reason = unpackable(job.spec, base)
            if reason is not None:
                log.info("trial %d runs alone: %s", job.trial, reason)
                self._waiting.appendleft(Waiting(job, alone=True))
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
        except Exception as error:  # the trial's edge
            log.warning("trial %d could not begin", job.trial, exc_info=error)
            text = f"{type(error).__name__}: {error}"
            job.end(TrialResult.from_error(error, text))
            return None

    def _compose(self, slots: Sequence[Slot]) -> None:
        """A pack of these slots, in place of the one that is there."""
        self._remove_pack()
        had, self.slots = bool(self.slots), list(slots)
        if not self.slots:
            if had:
                self.solo.verify()
            return
        base = self.slots[0].base
        adapted = {name for slot in self.slots for name in slot.parts.adapted}
        whole = {name for slot in self.slots for name in slot.parts.whole}
        rank = max(slot.rank for slot in self.slots)
        layout = make_layout(rank, adapted, whole, base.model)
        self._snapshot = Snapshot.of(base.model)
        self._pack = Pack(base.model, layout, len(self.slots), dtype_of(base))
        if any(slot.spec.training.gradient_checkpointing for slot in self.slots):
            checkpoint_activations(base.model)
        base.model.train()
        for number, slot in enumerate(self.slots):
            slot.move_in(self._pack, number)
        self._measure(base)

    def _remove_pack(self) -> None:
        """The base as it was; the slots keep what they have."""
        for slot in self.slots:
            slot.move_out()
        self._measuring.close()
        if self._snapshot is not None:
            self._snapshot.restore()
        self._pack = self._snapshot = self._peaks = None

    def _measure(self, base: Base) -> None:
        """Watch the memory of this composition."""
        self._peaks = self._measuring.enter_context(peak_memory(base.device))
        self._resident_bytes = next(iter(self._peaks().values()))

    def _advance(self, inbox: Inbox) -> None:
        """One packed step of the slots that may go on, and all that follows from it."""
        for slot in self.slots:
            if slot.reporter.waits and slot.job.decided:
                self._end_if(slot, slot.attempted(slot.reporter.settle))
        over = [slot for slot in self.slots if slot.is_over and not slot.reporter.waits]
        if over:
            self._finish(over)
            return
        ready = [slot for slot in self.slots if not slot.reporter.waits]
        if ready:
            self._step(ready)
        elif self.slots:
            self._await_change(inbox)

    def _await_change(self, inbox: Inbox) -> None:
        """Block until a slot may go on, or a job has come for a free one."""

        def changed() -> bool:
            if len(self.slots) < self.num_slots and not self._waiting:
                job = inbox.take(block=False)
                if job is not None:
                    self._waiting.append(Waiting(job))
                    return True
            return any(slot.job.decided for slot in self.slots)

        self.slots[0].job.wait_until(changed)

    def _step(self, ready: Sequence[Slot]) -> None:
        assert self._pack is not None
        base, first = ready[0].base, ready[0].spec
        rows = math.gcd(*(slot.feed.rows_per_micro_batch for slot in ready))
        begun = time.perf_counter()
        works = [Work(self.slots.index(slot), slot.spec, slot.feed.take(rows)) for slot in ready]
        try:
            losses_K = packed_step(
                self._pack,
                base.model,
                TASKS[first.task.type],
                works,
                pad_token_id=base.tokenizer.pad_token_id,
                device=base.device,
                bf16=first.training.bf16,
            ).tolist()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            losses_K = None
        if losses_K is None:  # only here is the error gone, with the tensors that it held
            self._shrink()
            return
        self.steps += 1
        seconds = (time.perf_counter() - begun) / len(ready)
        for slot, work, loss in zip(ready, works, losses_K, strict=True):
            slot.phases.add({"train": seconds})
            slot.loss += loss
            if work.chunk.ends_step:
                loss, slot.loss = slot.loss, 0.0
                self._end_if(slot, slot.attempted(lambda s=slot, at=loss: s.stepped(at)))  # type: ignore[misc]

    def _shrink(self) -> None:
        """Memory ran out: the newest trial goes back to the queue, and there is one slot less.

        Its state stays in memory of the host. The last one goes to the solo engine, whose ladder
        asks for less.
        """
        release(self.slots[0].base.device)
        for slot in self.slots:
            slot.begin_step_again()
        *others, newest = self.slots
        self.num_slots = max(1, len(others))
        log.warning(
            "out of memory with %d trials: trial %d waits", len(self.slots), newest.job.trial
        )
        self._compose(others)
        latest = newest.reporter.loop.saver.latest
        if latest is not None:
            newest.job.checkpoint = latest
        self._waiting.appendleft(Waiting(newest.job, alone=not others))

    def _end_if(self, slot: Slot, result: TrialResult | None) -> None:
        if result is not None:
            slot.job.end(result)
            self._compose([other for other in self.slots if other is not slot])

    def _finish(self, over: Sequence[Slot]) -> None:
        """End trials that are over, and free their slots."""
        if self._peaks is not None:
            for slot in self.slots:
                slot.saw_peak(self._peaks(), len(self.slots), self._resident_bytes)
        results: dict[int, TrialResult | None] = {}
        for slot in over:

            def end(slot: Slot = slot) -> None:
                results[slot.job.trial] = slot.result()

            failed = slot.attempted(end)
            if failed is not None:
                results[slot.job.trial] = failed
        self._compose([slot for slot in self.slots if slot not in over])
        for slot in over:
            slot.job.end(results[slot.job.trial])


@dataclass(frozen=True)
class Waiting:
    """A job that was taken from the inbox; `alone` if the solo engine is to run it."""

    job: Job
    alone: bool = False


def _fit(spec: TrialSpec, other: TrialSpec) -> bool:
    """Whether two trials see the same base and data in the same precision."""
    same = ("model", "quantization", "task", "data")
    return spec.training.bf16 == other.training.bf16 and all(
        getattr(spec, name) == getattr(other, name) for name in same
    )
