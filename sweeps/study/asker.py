"""From the sampler to a trial that may be launched: drawing, turning away, taking up again.

Each ask uses a sampler made anew from (sweep seed, trial number), so a sweep that was cut off draws
what the unbroken one would have drawn.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import optuna
from optuna.trial import Trial, TrialState
from pydantic import ValidationError

from peft_jobs import Kind, SpecError, TrialSpec, faults
from peft_jobs.spec.dotted import flatten
from peft_jobs.spec.mistakes import mistakes
from search_spaces import Params, SpaceError
from search_spaces.values import Scalar
from sweeps.search.samplers import SamplerSpec, make_sampler
from sweeps.spec import SweepSpec
from sweeps.spec.identity import adapter_key
from sweeps.study.cached_storage import CachedStorage
from sweeps.study.draws import Drawn, draw
from sweeps.study.transaction import Changes

log = logging.getLogger(__name__)

MAX_REASKS = 200
"""Points in a row that may be turned away before the space counts as exhausted."""
MAX_DUPLICATES = 10
"""Duplicates in a row after which points are drawn at random until one is new."""
NOT_LAUNCHED = (Kind.REJECTED, Kind.DUPLICATE)

_T = TypeVar("_T")


class Write(Protocol):
    """Runs what changes the study's database, and waits for a database that is away."""

    def __call__(self, call: Callable[[], _T], /) -> _T: ...


@dataclass(frozen=True)
class Point:
    """A trial to be run: its number in the study and its spec."""

    number: int
    attempt: int
    params: Params
    spec: TrialSpec
    checkpoint: str | None = None
    retry_of: int | None = None
    """The failed trial that this one runs again."""


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
            if "fingerprint" in t.user_attrs and t.user_attrs.get("kind") not in NOT_LAUNCHED
        }

    def new(self) -> tuple[Trial, Point] | None:
        """The next trial to launch; None when the space is exhausted."""
        for _ in range(MAX_REASKS):
            if self._exhausted() and not self._study.get_trials(
                deepcopy=False, states=(TrialState.WAITING,)
            ):
                break
            self._take_sampler(self._num_trials)
            trial = self._write(self._new_trial)
            self._num_trials = max(self._num_trials, trial.number + 1)
            faults.passing("ask.asked")
            point = self._settle(trial)
            if point is not None:
                return trial, point
        return None

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
        spec = self._trial_spec(known["params"])
        return trial, Point(
            number,
            attempt,
            known["params"],
            spec,
            known.get("checkpoint"),
            known.get("retry_of"),
        )

    def _exhausted(self) -> bool:
        return self._size is not None and len(self._seen) >= self._size

    def _new_trial(self) -> Trial:
        """Ask; but first take a trial that an ask has made and then lost its database."""
        for frozen in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if frozen.number >= self._num_trials:
                return Trial(self._study, frozen._trial_id)
        return self._study.ask()

    def _take_sampler(self, number: int) -> None:
        """Take the sampler for the point of trial `number`.

        One that has given nothing but duplicates for a while would go on so (GP learns nothing
        from them): a point at random leads it out.
        """
        spec = self._spec
        before = self._study.get_trials(deepcopy=False)[max(0, number - MAX_DUPLICATES) : number]
        stuck = [t.user_attrs.get("kind") for t in before] == [Kind.DUPLICATE] * MAX_DUPLICATES
        chosen = SamplerSpec(type="random") if stuck else spec.sampler
        last = self._study.sampler
        self._study.sampler = make_sampler(chosen, spec.space, spec.seed, number, last)

    def _settle(self, trial: Trial) -> Point | None:
        """Draw a new trial's point and record it; None if it is turned away."""
        changes = Changes()
        try:
            params = self._draw(trial, changes)
            violated = self._spec.space.violated(params, self._base)
            trial_spec = self._trial_spec(params)
        except SpaceError as error:
            return self._turn_away(trial, changes, Kind.REJECTED, str(error))
        except ValidationError as error:
            reason = "; ".join(map(str, mistakes(error, TrialSpec)))
            return self._turn_away(trial, changes, Kind.REJECTED, reason)
        changes.user_attrs["params"] = params
        if violated is not None:
            return self._turn_away(trial, changes, Kind.REJECTED, violated)
        fingerprint = trial_spec.fingerprint()
        retry_of = trial.user_attrs.get("retry_of")
        if fingerprint in self._seen and retry_of is None:
            same = f"the same as trial {self._seen[fingerprint]}"
            return self._turn_away(trial, changes, Kind.DUPLICATE, same)
        self._seen[fingerprint] = trial.number
        now = time.time()
        changes.user_attrs |= {"attempt": 1, "started_at": now, "fingerprint": fingerprint}
        faults.passing("ask.drawing")
        self._write(lambda: self._ledger.write(trial._trial_id, changes))
        faults.passing("ask.recorded")
        return Point(trial.number, 1, params, trial_spec, retry_of=retry_of)

    def _trial_spec(self, params: Params) -> TrialSpec:
        """SpecError if a saved adapter is no longer the one that the sweep began with."""
        spec = self._spec.trial.with_params(params)
        if (source := spec.adapter.source) is not None:
            seen = self._study.user_attrs.get("spec", {})
            if seen.get(f"the {adapter_key(source.name_or_path)}", source.sha256) != source.sha256:
                raise SpecError(
                    f"adapter.from: {source.name_or_path} has changed since the sweep began: put "
                    "it back, or give this sweep another name"
                )
        return spec

    def _draw(self, trial: Trial, changes: Changes) -> Params:
        """Draw the parameters of a trial into `changes`; each try starts from the same state."""
        tries, given = 0, self._given(trial)

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
        changes.update(noted)
        changes.params = drawn
        return params

    def _given(self, trial: Trial) -> dict[str, Scalar]:
        """What the space gives this trial, if it is one of the first; a retry has its own."""
        space = self._spec.space
        if not space.points_to_evaluate or "retry_of" in trial.user_attrs:
            return {}
        before = self._study.get_trials(deepcopy=False)[: trial.number]
        index = sum("retry_of" not in other.user_attrs for other in before)
        return space.given(index) if index < len(space.points_to_evaluate) else {}

    def _turn_away(self, trial: Trial, changes: Changes, kind: Kind, reason: str) -> Point | None:
        level = logging.WARNING if self._given(trial) else logging.INFO
        log.log(level, "trial %d is %s: %s", trial.number, kind, reason)
        changes.user_attrs |= {"kind": kind, "reason": reason}
        with self._ledger.gathering(trial._trial_id) as noted:
            trial.set_constraint(str(kind), 1.0)
        changes.update(noted)
        self._write(lambda: self._ledger.write(trial._trial_id, changes))
        self._write(lambda: self._study.tell(trial, None, TrialState.PRUNED))
        return None
