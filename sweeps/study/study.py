"""The sweep's Optuna study: the only record of what was asked, what was seen, how each trial ended.

One driver at a time writes to it (`lease`). Every trial carries user attributes: `params`
(all names of the point, decoded), `fingerprint`, `attempt`, where it has one `checkpoint`, and once
it has ended `kind`, `result` and numbers for Optuna's dashboard. A failed trial that is run again
has a successor, `retry_of`.
"""

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from peft_jobs import Progress, SpecError, State, TrialResult, faults
from sweeps.search.pruners import build
from sweeps.search.samplers import SAMPLERS
from sweeps.spec import SweepSpec
from sweeps.spec.identity import difference, identity, with_contents
from sweeps.spec.metrics import readable
from sweeps.study.asker import Asker
from sweeps.study.cached_storage import CachedStorage
from sweeps.study.database import name_metric, retry
from sweeps.study.lease import Holder, read_lease
from sweeps.study.point import Point
from sweeps.study.pruning import rung_records, should_stop
from sweeps.study.reruns import is_repeat
from sweeps.study.transaction import Changes
from sweeps.study.turned_away import is_launched
from sweeps.study.violations import Predict, violations

_T = TypeVar("_T")
_SPENT = ("driven_seconds", "gpu_seconds")


class SweepStudy:
    """One sweep's study, new or found again; a driver calls `take_over`, others only look."""

    def __init__(self, spec: SweepSpec, storage: optuna.storages.RDBStorage) -> None:
        self.spec, self.storage = spec, storage
        training, rungs = spec.trial.training, spec.trial.evaluation.rungs
        pruner = build(spec.pruner, training.max_samples or 1, rungs)
        try:
            self.optuna = optuna.load_study(study_name=spec.name, storage=storage, pruner=pruner)
        except KeyError:
            self.optuna = optuna.create_study(
                study_name=spec.name,
                storage=storage,
                direction=spec.objective.direction,
                pruner=pruner,
            )
        self.ledger: CachedStorage
        """The driver's view of the study, from `take_over` on."""
        self._live: dict[int, Trial] = {}
        self._asker: Asker
        self.on_wait: Callable[[], object] = lambda: None
        """Called while the database is locked or away and a write waits for it."""
        self.interrupted: list[int] = []
        """Trials that an earlier driver left running; `ask` gives them first."""

    @property
    def key(self) -> str:
        """Tells this sweep from others of its name in other studies."""
        return str(self.optuna.user_attrs["key"])

    @property
    def holder(self) -> Holder | None:
        """Who drives the sweep, dead or alive; None if nobody has since the last one ended."""
        return read_lease(self.storage.engine, self.spec.name)

    def take_over(
        self,
        seen: Mapping[str, Any] | None = None,
        key: str | None = None,
        home: Mapping[str, str] | None = None,
    ) -> None:
        """Become the sweep's driver: take up what an earlier one left.

        `seen` are fingerprints of what the trials see (base, rows, tokenizer, own code), `key` and
        `home` are of `records.ownership`. SpecError if the study holds a sweep with another
        specification, or one that saw something else. What no launch has looked at before, as on a
        device of another kind, is recorded.
        """
        before = self.optuna.user_attrs.get("spec")
        now = with_contents(identity(self.spec), seen or {}, before or {})
        if before is not None and (changed := difference(before, now)):
            raise SpecError(
                f"the sweep {self.spec.name!r} exists with another specification:\n{changed}\n"
                "Give this sweep another name, or take the changes back."
            )
        if before != now:
            self.optuna.set_user_attr("spec", now)
        name_metric(self.optuna, self.spec.objective.metric)
        if "key" not in self.optuna.user_attrs:
            self.optuna.set_user_attr("key", key or f"{self.spec.name}-{uuid.uuid4().hex[:12]}")
        if home is not None and self.optuna.user_attrs.get("home") != home:
            self.optuna.set_user_attr("home", home)
        self.ledger = CachedStorage(self.storage, self.optuna._study_id)
        self.optuna = optuna.load_study(
            study_name=self.spec.name, storage=self.ledger, pruner=self.optuna.pruner
        )
        self._finish_tells()
        self._asker = Asker(self.spec, self.optuna, self.ledger, self._write)
        running = [trial for trial in self.trials() if trial.state == TrialState.RUNNING]
        self.interrupted = [trial.number for trial in running if not is_repeat(trial)]

    @property
    def spent(self) -> tuple[float, float]:
        """Seconds for which the sweep was driven, and those of all GPUs held, as last noted."""
        driven, of_gpus = (float(self.optuna.user_attrs.get(name, 0.0)) for name in _SPENT)
        return driven, of_gpus

    def note_spent(self, spent: tuple[float, float]) -> None:
        """Record `spent`."""
        for name, seconds in zip(_SPENT, spent, strict=True):
            self._write(partial(self.optuna.set_user_attr, name, seconds))

    def trials(self) -> Sequence[FrozenTrial]:
        """All trials as the study knows them, in order of number; not to be modified."""
        return self.optuna.get_trials(deepcopy=False)

    def launched(self) -> list[FrozenTrial]:
        """The trials that count: not turned away before launch, not run again, no repeats."""
        trials = self.trials()
        idle = {t.user_attrs.get("retry_of") for t in trials}
        idle |= {t.number for t in trials if t.state == TrialState.WAITING}
        return [
            t
            for t in trials
            if is_launched(t) and t.number not in idle
            if not t.state.is_finished() or "result" in t.user_attrs  # else somebody else's
        ]

    def use_predictions(self, predict: Predict) -> None:
        """Turn new points away that break a constraint by what `predict` tells of them."""
        self._asker.predict = predict

    @property
    def is_slow(self) -> bool:
        """Whether `ask` may take seconds: it is then better called in a thread."""
        return SAMPLERS[self.spec.sampler.type].slow or self._asker.predict is not None

    def adopt(self, number: int) -> None:
        """Take a running trial of the study that nobody asked for; see `reruns`."""
        self._live[number] = Trial(self.optuna, self.ledger.trial(number)._trial_id)

    def ask(self) -> Point | None:
        """The next trial to run: first those left running, then new ones; None when exhausted."""
        return self.again() or self._begun(self._asker.new())

    def again(self) -> Point | None:
        """The next of the trials that an earlier driver left running; None if none is left."""
        found = None
        while self.interrupted and found is None:
            found = self._asker.again(self.interrupted.pop(0))
        return self._begun(found)

    @property
    def exhausted(self) -> str:
        """Why `ask` has given None."""
        return self._asker.ended or "the space is exhausted"

    def report(self, number: int, progress: Progress) -> bool:
        """Record what a trial measured, and what comes of it; True if it may go on.

        Only rungs are compared. One that was recorded before, by an earlier attempt, keeps its
        first value; and a decision stands, should the trial's host die before it is carried out.
        """
        return self._write(lambda: self._record(number, progress))

    def set_attempt(self, number: int, attempt: int) -> None:
        """Record that a trial's host was lost and it goes on as `attempt`."""
        self._set(self._live[number], attempt=attempt)

    def interrupt(self, number: int) -> None:
        """Note that a running trial was stopped without an end; it stays RUNNING."""
        self._set(self._live.pop(number), interrupted_at=time.time())

    def tell(self, number: int, result: TrialResult) -> None:
        """End a trial, once, with its true state, kind and violated constraints."""
        trial = self._live.pop(number)
        record = result.model_dump(mode="json", exclude={"traceback"})
        self._set(trial, kind=result.kind, result=record, **readable(result))
        faults.passing("tell.result")
        self._finish(trial, result)
        faults.passing("tell.told")

    def feasible(self, result: TrialResult) -> bool:
        """Whether a result keeps the sweep's constraints."""
        return all(value <= 0 for value in violations(self.spec, result).values())

    def _begun(self, found: tuple[Trial, Point] | None) -> Point | None:
        if found is not None:
            self._live[found[1].number] = found[0]
        return None if found is None else found[1]

    def _record(self, number: int, progress: Progress) -> bool:
        """`report`, once; a value, the pruner's notes and the decision come into being together."""
        trial, rung, changes = self.ledger.trial(number), progress.rung, Changes()
        if progress.checkpoint is not None:
            changes.user_attrs["checkpoint"] = progress.checkpoint
        go_on = "pruned_at" not in trial.user_attrs
        decided = trial.user_attrs.get("decided", {"rungs": [], "records": []})
        compared = go_on and rung is not None and rung not in decided["rungs"]
        if compared and rung is not None:
            if rung not in trial.intermediate_values:
                changes.values[rung] = float(progress.metrics[self.spec.objective.metric])
            with self.ledger.gathering(trial._trial_id) as noted:
                go_on = not should_stop(self.optuna, changes.applied_to(trial), decided["records"])
            changes.update(noted)
            records = rung_records(changes.applied_to(trial))
            decided = {"rungs": [*decided["rungs"], rung], "records": records}
            changes.user_attrs |= {"decided": decided} if go_on else {"pruned_at": rung}
            faults.passing("report.reported")
        self.ledger.write(trial._trial_id, changes)
        if compared:
            faults.passing("report.decided")
        return go_on

    def _finish(self, trial: Trial, result: TrialResult) -> None:
        with self.ledger.gathering(trial._trial_id) as changes:
            for name, violation in violations(self.spec, result).items():
                if name not in trial.constraints:
                    trial.set_constraint(name, violation)
        self._write(lambda: self.ledger.write(trial._trial_id, changes))
        value = result.metrics.get(self.spec.objective.metric)
        state = TrialState[result.state]
        final = value if result.state is State.COMPLETE else None
        self._write(lambda: self.optuna.tell(trial, final, state, skip_if_finished=True))

    def _finish_tells(self) -> None:
        """End the trials whose result an earlier driver recorded and then died."""
        for frozen in self.trials():
            if frozen.state == TrialState.RUNNING and "result" in frozen.user_attrs:
                trial = Trial(self.optuna, frozen._trial_id)
                self._finish(trial, TrialResult.model_validate(frozen.user_attrs["result"]))

    def _set(self, trial: Trial, **attributes: Any) -> None:
        changes = Changes(user_attrs=attributes)
        self._write(lambda: self.ledger.write(trial._trial_id, changes))

    def _write(self, call: Callable[[], _T]) -> _T:
        return retry(call, self.on_wait)
