"""The sweep's Optuna study: the only record of what was asked, what was seen, how each trial ended.

One driver at a time writes to it. Every trial carries user attributes: `params` (all names of the
point, decoded), `fingerprint`, `attempt`, and once it has ended `kind` and `result`.
"""

import logging
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

import optuna
from optuna.trial import FrozenTrial, TrialState
from pydantic import ValidationError

from peft_jobs import Kind, Progress, SpecError, State, TrialResult, TrialSpec
from peft_jobs.mistakes import mistakes
from search_spaces import Params, SpaceError
from sweeps.checks import flatten
from sweeps.database import retry
from sweeps.identity import difference, identity
from sweeps.pruners import build
from sweeps.samplers import make_sampler
from sweeps.spec import SamplerSpec, SweepSpec

log = logging.getLogger(__name__)

MAX_REASKS = 200
"""Points in a row that may be turned away before the space counts as exhausted."""
MAX_DUPLICATES = 10
"""Duplicates in a row after which points are drawn at random until one is new."""
TURNED_AWAY = (Kind.REJECTED, Kind.DUPLICATE)


@dataclass(frozen=True)
class Point:
    """A trial to be run: its number in the study and its spec."""

    number: int
    attempt: int
    params: Params
    spec: TrialSpec
    checkpoint: str | None = None


class SweepStudy:
    """One sweep's study, new or found again; a driver calls `take_over`, others only look."""

    def __init__(self, spec: SweepSpec, storage: optuna.storages.BaseStorage) -> None:
        self.spec = spec
        self._base = flatten(spec.trial)
        training, rungs = spec.trial.training, spec.trial.evaluation.rungs
        self.optuna = optuna.create_study(
            study_name=spec.name,
            storage=storage,
            direction=spec.objective.direction,
            pruner=build(spec.pruner, training.max_samples or 1, rungs),
            load_if_exists=True,
        )
        self._live: dict[int, optuna.trial.Trial] = {}
        self._rungs: dict[int, set[int]] = {}
        """The rungs at which each live trial was compared."""
        self._num_trials = 0
        self._seen: dict[str, int] = {}
        self.interrupted: list[int] = []
        """Trials that an earlier driver left running; `ask` gives them first."""

    @property
    def key(self) -> str:
        """Tells this sweep from others of its name in other studies."""
        return str(self.optuna.user_attrs["key"])

    def take_over(self) -> None:
        """Become the sweep's driver: take up what an earlier one left.

        SpecError if the study holds a different sweep.
        """
        now, before = identity(self.spec), self.optuna.user_attrs.get("spec")
        if before is None:
            self.optuna.set_user_attr("spec", now)
        elif before != now:
            raise SpecError(
                f"the sweep {self.spec.name!r} exists with another specification:\n"
                f"{difference(before, now)}\n"
                "Give this sweep another name, or take the changes back."
            )
        if "key" not in self.optuna.user_attrs:
            self.optuna.set_user_attr("key", f"{self.spec.name}-{uuid.uuid4().hex[:12]}")
        self._finish_tells()
        self._num_trials = len(self.trials())
        self._seen = {
            t.user_attrs["fingerprint"]: t.number
            for t in self.trials()
            if "fingerprint" in t.user_attrs and t.user_attrs.get("kind") not in TURNED_AWAY
        }
        self.interrupted = [t.number for t in self.trials() if t.state == TrialState.RUNNING]

    def trials(self) -> Sequence[FrozenTrial]:
        """All trials as the study knows them, in order of number; not to be modified."""
        return self.optuna.get_trials(deepcopy=False)

    def launched(self) -> list[FrozenTrial]:
        """The trials that were not turned away before launch."""
        return [t for t in self.trials() if t.user_attrs.get("kind") not in TURNED_AWAY]

    def ask(self) -> Point | None:
        """The next trial to run: first those left running, then new ones; None when exhausted."""
        while self.interrupted:
            point = self._adopt(self.interrupted.pop(0))
            if point is not None:
                return point
        size = self.spec.space.size()
        for _ in range(MAX_REASKS):
            if size is not None and len(self._seen) >= size:
                break
            point = self._ask_once()
            if point is not None:
                return point
        return None

    def report(self, number: int, progress: Progress) -> bool:
        """Record what a trial measured; True if it may go on.

        Only rungs are compared. One that was recorded before, by an earlier attempt, keeps its
        first value; and a decision to prune stands, should the trial's host die before it ends.
        """
        trial, rung = self._live[number], progress.rung
        if progress.checkpoint is not None:
            retry(lambda: trial.set_user_attr("checkpoint", progress.checkpoint))
        if "pruned_at" in trial.user_attrs:
            return False
        if rung is None or rung in self._rungs[number]:
            return True
        value = progress.metrics[self.spec.objective.metric]
        retry(lambda: trial.report(value, rung))
        self._rungs[number].add(rung)
        if not retry(trial.should_prune):
            return True
        retry(lambda: trial.set_user_attr("pruned_at", rung))
        return False

    def set_attempt(self, number: int, attempt: int) -> None:
        """Record that a trial's host was lost and it goes on as `attempt`."""
        retry(lambda: self._live[number].set_user_attr("attempt", attempt))

    def interrupt(self, number: int) -> None:
        """Note that a running trial was stopped without an end; it stays RUNNING."""
        now = time.time()
        retry(lambda: self._live[number].set_user_attr("interrupted_at", now))

    def tell(self, number: int, result: TrialResult) -> None:
        """End a trial, once, with its true state, kind and violated constraints."""
        trial = self._live.pop(number)
        del self._rungs[number]
        record = result.model_dump(mode="json", exclude={"traceback"})
        retry(lambda: trial.set_user_attr("kind", result.kind))
        retry(lambda: trial.set_user_attr("result", record))
        self._finish(trial, result)

    def _finish(self, trial: optuna.trial.Trial, result: TrialResult) -> None:
        for name, violation in self._violations(result).items():
            retry(lambda name=name, violation=violation: trial.set_constraint(name, violation))  # type: ignore[misc]
        value = result.metrics.get(self.spec.objective.metric)
        state = TrialState[result.state]
        final = value if result.state is State.COMPLETE else None
        retry(lambda: self.optuna.tell(trial, final, state, skip_if_finished=True))

    def feasible(self, result: TrialResult) -> bool:
        """Whether a result keeps the sweep's constraints."""
        return all(value <= 0 for value in self._violations(result).values())

    def _violations(self, result: TrialResult) -> dict[str, float]:
        """Constraint values, positive where violated; Optuna's samplers read them."""
        violations = {}
        known: dict[str, float] = {"minutes": sum(result.seconds.values()) / 60, **result.metrics}
        known |= {f"memory/{name}": value for name, value in result.memory.items()}
        if result.trainable_parameters is not None:
            known["trainable_parameters"] = result.trainable_parameters
        for name, limit in self.spec.constraints.items():
            if name in known:
                violations[name] = (known[name] - limit) / (abs(limit) or 1.0)
        if result.kind in (Kind.OUT_OF_MEMORY, Kind.DIVERGED):
            violations[str(result.kind)] = 1.0
        return violations

    def _finish_tells(self) -> None:
        """End the trials whose result an earlier driver recorded and then died."""
        for frozen in self.trials():
            if frozen.state == TrialState.RUNNING and "result" in frozen.user_attrs:
                trial = optuna.trial.Trial(self.optuna, frozen._trial_id)
                self._finish(trial, TrialResult.model_validate(frozen.user_attrs["result"]))

    def _adopt(self, number: int) -> Point | None:
        """A trial that an earlier driver left running, as its next attempt."""
        frozen = self.trials()[number]
        self._seed(number)
        trial = optuna.trial.Trial(self.optuna, frozen._trial_id)
        if "fingerprint" not in frozen.user_attrs:  # that driver died while asking
            return self._settle(trial)
        self._live[number] = trial
        self._rungs[number] = set(frozen.intermediate_values)
        attempt = int(frozen.user_attrs["attempt"]) + 1
        retry(lambda: trial.set_user_attr("attempt", attempt))
        params = frozen.user_attrs["params"]
        checkpoint = frozen.user_attrs.get("checkpoint")
        return Point(number, attempt, params, self.spec.trial.with_params(params), checkpoint)

    def _ask_once(self) -> Point | None:
        """One point of the sampler; None if it was turned away."""
        self._seed(self._num_trials)
        trial = retry(self.optuna.ask)
        self._num_trials = trial.number + 1
        return self._settle(trial)

    def _seed(self, number: int) -> None:
        """Take the sampler for the point of trial `number`.

        One that has given nothing but duplicates for a while would go on so (GP learns nothing
        from them): a point at random leads it out.
        """
        spec = self.spec
        last = self.trials()[max(0, number - MAX_DUPLICATES) : number]
        stuck = [t.user_attrs.get("kind") for t in last] == [Kind.DUPLICATE] * MAX_DUPLICATES
        chosen = SamplerSpec(type="random") if stuck else spec.sampler
        self.optuna.sampler = make_sampler(chosen, spec.space, spec.seed, number)

    def _settle(self, trial: optuna.trial.Trial) -> Point | None:
        """Draw a new trial's point and record it; None if it is turned away."""
        try:
            params = self.spec.space.draw(trial, self._base)
            violated = self.spec.space.violated(params, self._base)
            trial_spec = self.spec.trial.with_params(params)
        except SpaceError as error:
            return self._turn_away(trial, Kind.REJECTED, str(error))
        except ValidationError as error:
            return self._turn_away(trial, Kind.REJECTED, "; ".join(mistakes(error, TrialSpec)))
        retry(lambda: trial.set_user_attr("params", params))
        if violated is not None:
            return self._turn_away(trial, Kind.REJECTED, violated)
        fingerprint = trial_spec.fingerprint()
        if fingerprint in self._seen:
            same = f"the same as trial {self._seen[fingerprint]}"
            return self._turn_away(trial, Kind.DUPLICATE, same)
        self._seen[fingerprint] = trial.number
        self._live[trial.number] = trial
        self._rungs[trial.number] = set()
        retry(lambda: trial.set_user_attr("attempt", 1))
        retry(lambda: trial.set_user_attr("fingerprint", fingerprint))
        return Point(trial.number, 1, params, trial_spec)

    def _turn_away(self, trial: optuna.trial.Trial, kind: Kind, reason: str) -> Point | None:
        log.info("trial %d is %s: %s", trial.number, kind, reason)
        retry(lambda: trial.set_user_attr("kind", kind))
        retry(lambda: trial.set_user_attr("reason", reason))
        retry(lambda: trial.set_constraint(str(kind), 1.0))
        retry(lambda: self.optuna.tell(trial, None, TrialState.PRUNED))
        return None
