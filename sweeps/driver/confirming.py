"""The driver of a confirmation: candidates are trained again under fresh seeds, in rounds."""

from collections import deque
from dataclasses import dataclass, field

from optuna.trial import FrozenTrial, TrialState

from peft_jobs import TrialResult
from sweeps.confirmation.racing import FIRST_SEEDS
from sweeps.confirmation.rounds import next_round
from sweeps.driver.driver import Driver
from sweeps.spec.plan import trials_at_once
from sweeps.spec.sweep import ConfirmSpec
from sweeps.study.point import Point
from sweeps.study.reruns import begin_repeat, is_repeat, repeats


def most_at_once(driver: Driver) -> int:
    """Trials beyond which further ones at the same time are of no use, on however many devices."""
    if isinstance(driver, ConfirmingDriver):
        return repeats_at_once(driver.confirm)
    return trials_at_once(driver.spec, driver.budget.ended.total())


def repeats_at_once(confirm: ConfirmSpec) -> int:
    """Those of a confirmation's first round, its largest."""
    return confirm.candidates * FIRST_SEEDS


@dataclass
class ConfirmingDriver(Driver):
    """Starts repeats instead of new trials; what they come to is in the study (`reruns`)."""

    confirm: ConfirmSpec = field(default_factory=ConfirmSpec)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.budget.is_proven = True
        states = {trial.number: trial.state for trial in repeats(self.study)}
        left = [number for number, state in states.items() if state == TrialState.RUNNING]
        self.study.interrupted = left
        self._due: deque[tuple[int, int]] = deque()

    def has_room(self, slots: int) -> bool:
        """Whether a repeat may start; between two rounds none does, until all of one have ended."""
        is_between = not self.study.interrupted and not self._due and bool(self.running)
        return not is_between and len(self.running) < slots

    @property
    def wanted(self) -> int:
        """Repeats that would run now if there were room for all."""
        waiting = 0 if self.stop_requested else len(self.study.interrupted) + len(self._due)
        return len(self.running) + waiting

    def next_point(self) -> Point | None:
        """The next repeat; None at the end."""
        if self.stop_requested or self.budget.failed:
            return None
        if (point := self.study.again()) is not None:
            return point
        if not self._due:
            self._due.extend(next_round(self.study, self.confirm))
        return begin_repeat(self.study, *self._due.popleft()) if self._due else None

    def end(self, number: int, result: TrialResult) -> None:
        """End a repeat. Its adapter is not kept: that of the recorded trial is exported."""
        if result.adapter is not None:
            attempt = self.running[number].attempt
            self.folder.remove(self.folder.attempt(number, attempt) / result.adapter)
            result = result.model_copy(update={"adapter": None})
        super().end(number, result)

    def _recorded(self) -> list[FrozenTrial]:
        return [*super()._recorded(), *repeats(self.study)]

    def _count(self, number: int, result: TrialResult) -> None:
        if is_repeat(self.study.trials()[number]):
            self.ended[number] = result
        else:
            super()._count(number, result)
