"""From the sampler to a trial that may be launched: drawing, turning away, taking up again.

Each ask uses a sampler made anew from (sweep seed, trial number), so a sweep that was cut off draws
what the unbroken one would have drawn.
"""

import logging
import math
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import optuna
from optuna.trial import Trial, TrialState

from peft_jobs import Kind, faults
from peft_jobs.spec.dotted import flatten
from search_spaces import Params
from search_spaces.values import Scalar
from sweeps.errors import StudyGone, Unavailable
from sweeps.search.samplers import Grid, SamplerSpec, make_sampler
from sweeps.spec import SweepSpec
from sweeps.spec.identity import check_adapter
from sweeps.study.cached_storage import CachedStorage
from sweeps.study.database import DATABASE_ERRORS, Write
from sweeps.study.draws import Drawn, draw
from sweeps.study.point import Point, predicted_of
from sweeps.study.reruns import REPEAT_OF, is_rerun, spec_of
from sweeps.study.transaction import Changes
from sweeps.study.turned_away import (
    NOT_LAUNCHED,
    ListedPoints,
    check_queued,
    given_up,
    is_launched,
    reason,
    told_of,
)
from sweeps.study.violations import Predict, predicted_violations, told

log = logging.getLogger(__name__)

MAX_REASKS = 200
"""Points in a row that may be turned away before a finite space is listed, or the sweep ends."""
MAX_LISTED = 100_000
"""Points of a space that is listed where its sampler finds no new one."""
MAX_DUPLICATES = 10
"""Duplicates in a row after which points are drawn at random until one is new."""


class Asker:
    """Draws the points of one sweep, and knows which were drawn before."""

    def __init__(
        self, spec: SweepSpec, study: optuna.Study, ledger: CachedStorage, write: Write
    ) -> None:
        self._spec, self._study, self._ledger, self._write = spec, study, ledger, write
        self._base = flatten(spec.trial)
        self._size = spec.space.size()
        trials = study.get_trials(deepcopy=False)
        self._num_trials = len(trials)
        self._seen = {
            t.user_attrs["fingerprint"]: t.number
            for t in trials
            if "fingerprint" in t.user_attrs and is_launched(t)
        }
        self._first_listed = next((t.number for t in trials if "grid_id" in t.system_attrs), None)
        """The first trial whose point was taken from a list of all."""
        self._listed = ListedPoints(spec, self._seen)
        self.ended: str | None = None
        """Why `new` has given None."""
        self.predict: Predict | None = None
        """Tells what a point would take: one that breaks a constraint by that is turned away."""

    def new(self) -> tuple[Trial, Point] | None:
        """The next trial to launch; None, and `ended` says why, when there is none."""
        away: Counter[str] = Counter()
        while True:
            self._take_sampler(self._num_trials)
            if self._exhausted():
                self.ended = self._listed.at_end
                return None
            if away.total() >= MAX_REASKS and not isinstance(self._study.sampler, Grid):
                self.ended = given_up(away)
                return None
            trial = self._write(self._new_trial)
            self._num_trials = max(self._num_trials, trial.number + 1)
            faults.passing("ask.asked")
            if (point := self._settle(trial)) is not None:
                return trial, point
            away[reason(self._study.get_trials(deepcopy=False)[trial.number])] += 1

    def again(self, number: int) -> tuple[Trial, Point] | None:
        """A trial that an earlier driver left running, as its next attempt.

        None if that driver died while it asked, and the point is now turned away.
        """
        frozen = self._study.get_trials(deepcopy=False)[number]
        self._take_sampler(number)
        trial = Trial(self._study, frozen._trial_id)
        known = frozen.user_attrs
        if "fingerprint" not in known:
            point = self._settle(trial)
            return None if point is None else (trial, point)
        attempt = int(known["attempt"]) + 1
        changes = Changes(user_attrs={"attempt": attempt, "started_at": time.time()})
        self._write(lambda: self._ledger.write(trial._trial_id, changes))
        spec = spec_of(self._spec.trial, known)
        check_adapter(spec, self._attributes)
        left = (known.get("checkpoint"), known.get("retry_of"), known.get(REPEAT_OF))
        point = Point(number, attempt, known["params"], spec, *left)
        return trial, replace(point, predicted=predicted_of(known))

    def _attributes(self) -> dict[str, Any]:
        return self._write(lambda: self._study.user_attrs)

    def _exhausted(self) -> bool:
        """Whether no point is queued, and as far as is known none is left."""
        if self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            return False
        is_full = self._size is not None and len(self._seen) >= self._size
        sampler = self._study.sampler
        return is_full or (isinstance(sampler, Grid) and sampler.next_id(self._study) is None)

    def _new_trial(self) -> Trial:
        """Ask; but first take a trial that an ask has made and then lost its database."""
        for frozen in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if frozen.number >= self._num_trials:
                return Trial(self._study, frozen._trial_id)
        return self._study.ask()

    def _take_sampler(self, number: int) -> None:
        """Take the sampler for the point of trial `number`.

        One that has given nothing but duplicates for a while would go on so (GP learns nothing
        from them): a point at random leads it out. Where nothing at all leads to a new point, and
        the space is small enough, what is left of it is taken in turn from then on.
        """
        spec = self._spec
        before = self._study.get_trials(deepcopy=False)[max(0, number - MAX_REASKS) : number]
        kinds, chosen = [t.user_attrs.get("kind") for t in before], spec.sampler
        if (
            self._first_listed is None
            and (self._size or math.inf) <= MAX_LISTED
            and len(kinds) == MAX_REASKS
            and set(kinds) <= set(NOT_LAUNCHED)
        ):
            self._first_listed = number
        if self._first_listed is not None and number >= self._first_listed:
            chosen = SamplerSpec(type="grid")
        elif kinds[-MAX_DUPLICATES:] == [Kind.DUPLICATE] * MAX_DUPLICATES:
            chosen = SamplerSpec(type="random")
        last, accepts = self._study.sampler, self._listed.accepts
        self._study.sampler = make_sampler(chosen, spec.space, spec.seed, number, last, accepts)
        if not isinstance(last, Grid):
            self._listed.refused.clear()  # a list that was just made begins at its first point

    def _settle(self, trial: Trial) -> Point | None:
        """Draw a new trial's point and record it; None if it is turned away."""
        changes = Changes()
        try:
            params = self._draw(trial, changes)
            violated = self._spec.space.violated(params, self._base)
            trial_spec = self._spec.trial.with_params(params)
        except (*DATABASE_ERRORS, StudyGone, Unavailable):
            raise
        except Exception as error:  # of a sampler, a person's function too: it is about this point
            return self._turn_away(trial, changes, Kind.REJECTED, told_of(error))
        check_adapter(trial_spec, self._attributes)
        changes.user_attrs["params"] = params
        if violated is not None:
            return self._turn_away(trial, changes, Kind.REJECTED, violated)
        fingerprint = trial_spec.fingerprint()
        retry_of = trial.user_attrs.get("retry_of")
        if fingerprint in self._seen and retry_of is None:
            same = f"the same as trial {self._seen[fingerprint]}"
            return self._turn_away(trial, changes, Kind.DUPLICATE, same)
        predicted = None if self.predict is None else self.predict(trial_spec)
        if predicted is not None:
            changes.user_attrs["predicted"] = predicted.model_dump(mode="json")
            values = predicted_violations(self._spec, predicted)
            if values and retry_of is None:
                why = told(self._spec, values)
                return self._turn_away(trial, changes, Kind.REJECTED, why, values)
        self._seen[fingerprint] = trial.number
        now = time.time()
        changes.user_attrs |= {"attempt": 1, "started_at": now, "fingerprint": fingerprint}
        faults.passing("ask.drawing")
        self._write(lambda: self._ledger.write(trial._trial_id, changes))
        faults.passing("ask.recorded")
        return Point(trial.number, 1, params, trial_spec, None, retry_of, predicted=predicted)

    def _draw(self, trial: Trial, changes: Changes) -> Params:
        """Draw the parameters of a trial into `changes`; each try starts from the same state.

        SpaceError if a point that was queued, perhaps by another program, is none of the space.
        """
        tries, given = 0, self._given(trial)
        queued = self._ledger.trial(trial.number).system_attrs.get("fixed_params", {})
        self._spec.space.check_given(queued)

        def once() -> tuple[Params, Drawn, Changes]:
            nonlocal tries
            tries, source = tries + 1, trial
            if tries > 1:
                self._take_sampler(trial.number)
                source = Trial(self._study, trial._trial_id)
            source._fixed_params = given or source._fixed_params
            with self._ledger.gathering(trial._trial_id) as noted:
                return *draw(source, lambda t: self._spec.space.draw(t, self._base)), noted

        params, drawn, noted = self._write(once)
        check_queued(queued, drawn)
        changes.update(noted)
        changes.params = drawn
        return params

    def _given(self, trial: Trial) -> dict[str, Scalar]:
        """What the space gives this trial, if it is one of the first; a retry has its own."""
        space = self._spec.space
        if not space.points_to_evaluate or "retry_of" in trial.user_attrs:
            return {}
        before = self._study.get_trials(deepcopy=False)[: trial.number]
        index = sum(not is_rerun(t) for t in before)
        return space.given(index) if index < len(space.points_to_evaluate) else {}

    def _turn_away(
        self,
        trial: Trial,
        changes: Changes,
        kind: Kind,
        reason: str,
        values: Mapping[str, float] | None = None,
    ) -> Point | None:
        """End a trial that is not launched; it has constraint values, as `values` or by kind."""
        queued = "fixed_params" in self._ledger.trial(trial.number).system_attrs
        level = logging.WARNING if queued or self._given(trial) else logging.INFO
        log.log(level, "trial %d is %s: %s", trial.number, kind, reason)
        changes.user_attrs |= {"kind": kind, "reason": reason}
        with self._ledger.gathering(trial._trial_id) as noted:
            for name, value in (values or {str(kind): 1.0}).items():
                trial.set_constraint(name, value)
        changes.update(noted)
        self._write(lambda: self._ledger.write(trial._trial_id, changes))
        # A sampler that sees a trial without parameters takes the space to have none in common.
        state = TrialState.PRUNED if changes.params else TrialState.FAIL
        self._write(lambda: self._study.tell(trial, None, state))
        return None
