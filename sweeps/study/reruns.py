"""Trials that are run again: failed ones under a new number, and candidates under fresh seeds.

A repeat of a candidate trains its configuration under another seed, without rungs. It is a trial
of the study that says of which trial it is the repeat: samplers and pruners do not see it, and it
is no part of the sweep's budget. What its driver left running goes on as any trial does.
"""

import time
from collections.abc import Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

from optuna.trial import FrozenTrial, TrialState, create_trial

from peft_jobs import TrialSpec
from search_spaces import Params
from sweeps.study.database import retry
from sweeps.study.point import Point

if TYPE_CHECKING:
    from sweeps.study.study import SweepStudy

REPEAT_OF, REPEAT_SEED = "confirm_of", "confirm_seed"


def is_repeat(trial: FrozenTrial) -> bool:
    """Whether a trial trains another one's configuration under another seed."""
    return REPEAT_OF in trial.user_attrs


def is_rerun(trial: FrozenTrial) -> bool:
    """Whether a trial runs another one again: a failed one, or a candidate under another seed."""
    return "retry_of" in trial.user_attrs or is_repeat(trial)


def given_numbers(study: "SweepStudy") -> set[int]:
    """Numbers of the trials that took the points that the space was told to evaluate: the first
    ones that are no reruns."""
    first = (trial.number for trial in study.trials() if not is_rerun(trial))
    return set(islice(first, len(study.spec.space.points_to_evaluate)))


def repeat_spec(base: TrialSpec, params: Params, seed: int) -> TrialSpec:
    """A configuration under another seed, compared at its end only."""
    return base.with_params({**params, "seed": seed, "evaluation.rungs": []})


def spec_of(base: TrialSpec, known: Mapping[str, Any]) -> TrialSpec:
    """The spec of a launched trial, a repeat or not, by its user attributes."""
    if REPEAT_OF in known:
        return repeat_spec(base, known["params"], known[REPEAT_SEED])
    return base.with_params(known["params"])


def retry_failed(study: "SweepStudy") -> list[int]:
    """Queue every failed trial to be run once more, under a new number; their numbers."""
    failed = [trial for trial in study.launched() if trial.state == TrialState.FAIL]
    for trial in failed:
        attrs = {"retry_of": trial.number}
        retry(lambda t=trial, a=attrs: study.optuna.enqueue_trial(t.params, a), study.on_wait)  # type: ignore[misc]
    return [trial.number for trial in failed]


def repeats(study: "SweepStudy") -> list[FrozenTrial]:
    """All repeats of a study's trials."""
    return [trial for trial in study.trials() if is_repeat(trial)]


def begin_repeat(study: "SweepStudy", number: int, seed: int) -> Point:
    """A new trial of the study, which repeats the trial `number`."""
    original = study.trials()[number]
    params = original.user_attrs["params"]
    spec = repeat_spec(study.spec.trial, params, seed)
    known = {
        REPEAT_OF: number,
        REPEAT_SEED: seed,
        "params": params,
        "fingerprint": spec.fingerprint(),
        "attempt": 1,
        "started_at": time.time(),
    }
    template = create_trial(
        state=TrialState.RUNNING,
        params=original.params,
        distributions=original.distributions,
        user_attrs=known,
    )

    def create() -> int:
        for trial in repeats(study):  # one that was made, and whose database did not answer then
            if trial.user_attrs["fingerprint"] == known["fingerprint"]:
                return trial.number
        study.ledger.create_new_trial(study.optuna._study_id, template)
        return len(study.trials()) - 1

    made = retry(create, study.on_wait)
    study.adopt(made)
    return Point(made, 1, params, spec, confirm_of=number)
