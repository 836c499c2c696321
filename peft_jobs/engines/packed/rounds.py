"""Rounds: every trial that may go on takes one chunk, in steps of as many trials as are best."""

import logging
import math
import time
from collections.abc import Hashable, Sequence
from enum import Enum, auto
from functools import partial

from peft_jobs.activity import moved
from peft_jobs.device.lost_device import raise_if_lost
from peft_jobs.device.memory import RanOut, release, tried
from peft_jobs.engines.packed.calibration import Calibration, groups
from peft_jobs.engines.packed.composition import UNLIMITED, Composition
from peft_jobs.engines.packed.evaluations import Evaluations
from peft_jobs.engines.packed.packed_trial import PackedTrial, slot_of
from peft_jobs.engines.packed.row import step_rows
from peft_jobs.engines.packed.step import Work, packed_step
from peft_jobs.host.result import TrialResult
from peft_jobs.tasks import TASKS

log = logging.getLogger(__name__)

Results = dict[PackedTrial, TrialResult | None]
"""How trials ended; None for those that go on."""


class Failure(Enum):
    """Why a step was not made."""

    MEMORY = auto()
    ERROR = auto()


class Rounds:
    """Makes rounds, and learns from their cost how many trials a step should have."""

    def __init__(self, composition: Composition, width: int) -> None:
        """`width` is the one to tell before the first round."""
        self.composition, self.width = composition, width
        """Trials of a step, as chosen last."""
        self.calibration = Calibration()
        self.evaluations = Evaluations(composition)
        self.most: dict[Hashable, int] = {}
        """Trials of a step that memory is enough for, by kind of work, where it is not for all."""
        self.steps = 0

    def limit(self, trials: Sequence[PackedTrial]) -> int | None:
        """Running trials beyond which more would gain nothing; None if there is no such number."""
        kind = _kind(trials)
        limits = [self.calibration.limit(kind), self.most.get(kind)]
        return min((limit for limit in limits if limit is not None), default=None)

    def make(self, ready: Sequence[PackedTrial]) -> tuple[Results, bool]:
        """One round: what became of the trials, and False if memory is too small for so many.

        Where it runs out, the trials of that step and of later ones have not moved; if the step was
        of some of the trials, later ones are of fewer. Trials with micro-batches of a size go
        together: a step has as many rows of each as all of them can give. Trials that reach a rung
        are evaluated together, after the last step; nobody else waits for them.
        """
        results: Results = {}
        fits = self._steps(ready, results)
        due = [trial for trial, ended in results.items() if ended is None and trial.is_due]
        self.evaluations.make(due, "validation")
        for trial in due:
            results[trial] = trial.attempted(trial.end_step)
        return results, fits

    def _steps(self, ready: Sequence[PackedTrial], results: Results) -> bool:
        kind = _kind(ready)
        most = min(len(ready), self.most.get(kind, UNLIMITED))
        self.width = self.calibration.width(kind, most)
        seconds, num_tokens, failed = 0.0, 0, False
        for group in self._groups(ready):
            moved()
            begun = time.perf_counter()
            works = self._works(group)
            losses = self._tried(group, works)
            if isinstance(losses, Failure):
                failed = True
                for trial in group:
                    trial.begin_step_again()
                if losses is Failure.MEMORY:
                    return self._narrowed(kind, group)
                if not self._one_by_one(group, results):
                    return False
                continue
            spent = time.perf_counter() - begun
            seconds += spent
            num_tokens += sum(work.chunk.num_tokens for work in works)
            for trial, work, loss in zip(group, works, losses, strict=True):
                trial.phases.add({"train": spent / len(group)})
                trial.draft.provenance["slots"] = self.width
                ends_step = work.chunk.ends_step
                results[trial] = trial.attempted(partial(trial.stepped, loss, ends_step))
            self._end_steps(group, works, results)
        if not failed:
            self.calibration.saw(kind, self.width, seconds, num_tokens)
        return True

    def _end_steps(
        self, group: Sequence[PackedTrial], works: Sequence[Work], results: Results
    ) -> None:
        """Step the optimizers of those whose chunk was the last of a step, and report."""
        due = [
            trial
            for trial, work in zip(group, works, strict=True)
            if work.chunk.ends_step and results[trial] is None
        ]
        try:
            step_rows([trial.row for trial in due if trial.row is not None])
        except Exception as error:
            results |= {trial: trial.failure(error) for trial in due}
        for trial in group:
            if results[trial] is None:
                results[trial] = trial.attempted(partial(_ended, trial))

    def _narrowed(self, kind: Hashable, group: Sequence[PackedTrial]) -> bool:
        """Make smaller steps of trials that memory was too small for; False if these were all."""
        if not 1 < len(group) < len(self.composition.trials):
            return False
        self.most[kind] = -(-len(group) // 2)
        log.warning("out of memory in a step of %d trials: fewer share one", len(group))
        release(group[0].base.device)
        return True

    def _groups(self, ready: Sequence[PackedTrial]) -> list[list[PackedTrial]]:
        """The trials of each step. Those that compute activations again go together, as one has
        all of a step do so; and those whose next rows are of like lengths."""
        if self.width >= len(ready):
            return [sorted(ready, key=slot_of)]
        ordered = sorted(ready, key=_order)
        # Neighbours in the pack are a slice of its rows, which costs no copy.
        return [sorted(group, key=slot_of) for group in groups(ordered, self.width)]

    def _works(self, group: Sequence[PackedTrial]) -> list[Work]:
        rows = math.gcd(*(trial.feed.rows_left for trial in group))
        return [Work(slot_of(trial), trial.spec, trial.feed.take(rows)) for trial in group]

    def _losses(self, first: PackedTrial, works: Sequence[Work]) -> list[float]:
        """One packed step."""
        base, spec = first.base, first.spec
        losses: list[float] = packed_step(
            self.composition.pack,
            base.model,
            TASKS[spec.task.type],
            works,
            pad_token_id=base.tokenizer.pad_token_id,
            device=base.device,
            training=spec.training,
        ).tolist()
        self.steps += 1
        return losses

    def _tried(self, group: Sequence[PackedTrial], works: Sequence[Work]) -> list[float] | Failure:
        try:
            losses = tried(lambda: self._losses(group[0], works))
        except Exception as error:
            raise_if_lost(error)
            log.warning("a step of %d trials failed; each tries alone", len(group), exc_info=error)
            return Failure.ERROR
        return Failure.MEMORY if isinstance(losses, RanOut) else losses

    def _one_by_one(self, group: Sequence[PackedTrial], results: Results) -> bool:
        """A whole optimizer step of each trial by itself, so that an error ends the trial whose own
        it is; False if memory ran out."""
        for trial in group:
            try:
                ran_out = tried(partial(self._step_alone, trial))
            except Exception as error:
                results[trial] = trial.failure(error)
                continue
            if ran_out is not None:
                trial.begin_step_again()
                return False
            results[trial] = None
        return True

    def _step_alone(self, trial: PackedTrial) -> None:
        ended = False
        while not ended:
            [work] = self._works([trial])
            [loss] = self._losses(trial, [work])
            ended = work.chunk.ends_step
            trial.stepped(loss, ended)
            if ended and trial.row:
                step_rows([trial.row])
            _ended(trial)


def _ended(trial: PackedTrial) -> None:
    if not trial.is_due:
        trial.end_step()


def _order(trial: PackedTrial) -> tuple[bool, int, int]:
    feed = trial.feed
    recomputes = trial.spec.training.gradient_checkpointing
    return recomputes, feed.rows_per_micro_batch, feed.longest


def _kind(trials: Sequence[PackedTrial]) -> Hashable:
    """What decides what a step of these trials costs, beside their number."""
    return frozenset(trial.feed.rows_per_micro_batch for trial in trials)
