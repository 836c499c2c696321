"""CachedStorage: the study's trials in the memory of the one process that writes them.

Optuna's own cache reads every unfinished trial again at each look, which costs more the more trials
run. A sweep's driver is the study's only writer (`lease`), so it reads once. Each change
goes to the database first, in one transaction, and is seen here once it is there. When a write
fails it is not known whether it arrived: then what may have changed is read again.
"""

import copy
import threading
from bisect import insort
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from optuna.distributions import BaseDistribution, check_distribution_compatibility
from optuna.storages import BaseStorage, RDBStorage
from optuna.study._frozen import FrozenStudy
from optuna.study._study_direction import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from sweeps.search.successive_halving import RUNG_RECORD
from sweeps.study.database import knowing_study
from sweeps.study.history import Considered
from sweeps.study.reruns import is_repeat
from sweeps.study.transaction import Changes, write


class CachedStorage(BaseStorage):
    """Optuna's storage of one study; a trial once given out does not change."""

    def __init__(self, backend: RDBStorage, study_id: int) -> None:
        self._backend, self._study = backend, study_id
        self._directions = backend.get_study_directions(study_id)
        self._lock = threading.RLock()
        self._thread = threading.local()
        self._trials: list[FrozenTrial] = []
        self._numbers: dict[int, int] = {}
        self._unfinished: dict[int, FrozenTrial] = {}
        self._distributions: dict[str, BaseDistribution] = {}
        self._considered = Considered(self._directions[0])
        self._rungs: dict[str, list[float]] = {}
        self._has_repeats = False
        self._unsure = True
        """Whether the database may hold more than is here."""

    def trial(self, number: int) -> FrozenTrial:
        """The trial of that number; not to be modified."""
        self._be_sure()
        return self._trials[number]

    def rung(self, name: str) -> Sequence[float]:
        """The values that successive halving has recorded under that name, ascending."""
        self._be_sure()
        return self._rungs.get(name, [])

    @contextmanager
    def gathering(self, trial_id: int) -> Iterator[Changes]:
        """In this thread, keep what is written to a trial, for `write` to write it at once.

        Reads do not see it before that.
        """
        self._thread.gathered = trial_id, Changes()
        try:
            yield self._thread.gathered[1]
        finally:
            del self._thread.gathered

    @contextmanager
    def considering(self) -> Iterator[None]:
        """In this thread, show only the trials that `Considered` chooses."""
        self._thread.considering = True
        try:
            yield
        finally:
            self._thread.considering = False

    def write(self, trial_id: int, changes: Changes) -> None:
        """Make all changes of a running trial in one transaction."""
        if not changes:
            return
        with self._changing():
            before = self._known(trial_id)
            for name, (_, distribution) in changes.params.items():
                first = self._distributions.setdefault(name, distribution)
                check_distribution_compatibility(first, distribution)
            write(self._backend, before, changes)
            self._put(changes.applied_to(before))

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """A copy, because Optuna's `Trial` keeps its own notes in it."""
        self._be_sure()
        return Changes().applied_to(self._known(trial_id))

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        self._be_sure()
        if getattr(self._thread, "considering", False):
            trials = self._considered.of(self._trials, self._unfinished)
        elif states is None or any(s in states for s in TrialState if s.is_finished()):
            trials = list(self._trials)
        else:
            trials = sorted(self._unfinished.values(), key=lambda trial: trial.number)
        if states is not None:
            trials = [trial for trial in trials if trial.state in states]
        if self._has_repeats and getattr(self._thread, "gathered", None) is not None:
            trials = [trial for trial in trials if not is_repeat(trial)]  # a sampler or pruner asks
        return copy.deepcopy(trials) if deepcopy else trials

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        with self._changing():
            frozen = self._backend._create_new_trial(study_id, template_trial)
            if frozen.number > len(self._trials):  # Optuna has tried again after a lost answer
                self._read()
            else:
                self._put(frozen)
        return frozen._trial_id

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        with self._changing():
            if not self._backend.set_trial_state_values(trial_id, state, values):
                return False
            after = Changes().applied_to(self._known(trial_id))
            after.state = state
            after.values = after.values if values is None else list(values)
            if state.is_finished():
                after.datetime_complete = datetime.now()
            else:
                after.datetime_start = datetime.now()
            self._put(after)
        return True

    def set_trial_param(
        self,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
    ) -> None:
        self._change(trial_id, Changes(params={param_name: (param_value_internal, distribution)}))

    def set_trial_intermediate_value(
        self, trial_id: int, step: int, intermediate_value: float
    ) -> None:
        self._change(trial_id, Changes(values={step: intermediate_value}))

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._change(trial_id, Changes(user_attrs={key: value}))

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._change(trial_id, Changes(system_attrs={key: value}))

    def get_trial_id_from_study_id_trial_number(self, study_id: int, trial_number: int) -> int:
        self._be_sure()
        if trial_number >= len(self._trials):
            raise KeyError(f"there is no trial {trial_number}")
        return self._trials[trial_number]._trial_id

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        return self._directions

    # What follows concerns studies, and is the database's.
    def create_new_study(
        self, directions: Sequence[StudyDirection], study_name: str | None = None
    ) -> int:
        return self._backend.create_new_study(directions, study_name)

    def delete_study(self, study_id: int) -> None:
        self._backend.delete_study(study_id)

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        with knowing_study(self._backend, study_id):
            self._backend.set_study_user_attr(study_id, key, value)

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        self._backend.set_study_system_attr(study_id, key, value)

    def get_study_id_from_name(self, study_name: str) -> int:
        return self._backend.get_study_id_from_name(study_name)

    def get_study_name_from_id(self, study_id: int) -> str:
        return self._backend.get_study_name_from_id(study_id)

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        return self._backend.get_study_user_attrs(study_id)

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        return self._backend.get_study_system_attrs(study_id)

    def get_all_studies(self) -> list[FrozenStudy]:
        return self._backend.get_all_studies()

    def _change(self, trial_id: int, changes: Changes) -> None:
        gathered = getattr(self._thread, "gathered", None)
        if gathered is not None and gathered[0] == trial_id:
            gathered[1].update(changes)
        else:
            self.write(trial_id, changes)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        with self._lock:
            self._be_sure()
            self._unsure = True
            with knowing_study(self._backend, self._study):
                yield
            self._unsure = False

    def _be_sure(self) -> None:
        if self._unsure:
            with self._lock:
                if self._unsure:
                    with knowing_study(self._backend, self._study):
                        self._read()

    def _read(self) -> None:
        """Read what may have changed: unfinished trials and new ones."""
        unfinished = {trial._trial_id for trial in self._unfinished.values()}
        last = self._trials[-1]._trial_id if self._trials else -1
        for trial in self._backend._get_trials(self._study, None, unfinished, last):
            for name, distribution in trial.distributions.items():
                self._distributions.setdefault(name, distribution)
            self._put(trial)
        self._unsure = False

    def _known(self, trial_id: int) -> FrozenTrial:
        return self._trials[self._numbers[trial_id]]

    def _put(self, trial: FrozenTrial) -> None:
        number = trial.number
        self._has_repeats = self._has_repeats or is_repeat(trial)
        recorded: Mapping[str, Any] = {}
        if number == len(self._trials):
            self._trials.append(trial)
        else:
            recorded, self._trials[number] = self._trials[number].system_attrs, trial
        for name, value in trial.system_attrs.items():
            if name.startswith(RUNG_RECORD) and value != recorded.get(name):
                values = self._rungs.setdefault(name, [])
                if name in recorded:
                    values.remove(recorded[name])
                insort(values, value)
        self._numbers[trial._trial_id] = number
        if trial.state.is_finished():
            self._unfinished.pop(number, None)
            self._considered.finished(trial)
        else:
            self._unfinished[number] = trial
