"""The rounds of a confirmation, as a function of the study: what is to be repeated next."""

import hashlib
import math
from collections.abc import Sequence
from statistics import mean

from optuna.trial import FrozenTrial, TrialState

from peft_jobs import SpecError, TrialResult
from peft_jobs.spec.dotted import flatten
from sweeps.confirmation.candidates import Recorded, candidates
from sweeps.confirmation.racing import Race
from sweeps.spec.sweep import ConfirmSpec
from sweeps.study.reruns import REPEAT_OF, REPEAT_SEED, given_numbers, repeats
from sweeps.study.study import SweepStudy


def check_confirmable(study: SweepStudy) -> None:
    """SpecError unless the sweep's own trials have ended, and some of them completed."""
    name = study.spec.name
    if study.interrupted:
        raise SpecError(
            f"{len(study.interrupted)} trials of the sweep {name!r} have not ended: "
            f"`peft-sweep resume {name}` first"
        )
    if not recorded_trials(study):
        raise SpecError(f"no trial of the sweep {name!r} is complete: there is nothing to confirm")


def next_round(study: SweepStudy, spec: ConfirmSpec) -> list[tuple[int, int]]:
    """Trials and seeds to repeat them under, now that no repeat runs; a function of the study."""
    losses, failed = losses_of(study)
    chosen = candidates(recorded_trials(study), losses, spec.candidates)
    spent = sum(len(of) for of in losses.values())
    most = int(min(spec.max_trials, spent + _affordable(study, spec.timeout, chosen)))
    return Race(chosen, fresh_seeds(study, spec.seeds), most).next(losses, failed)


def _affordable(study: SweepStudy, seconds: float | None, chosen: Sequence[int]) -> float:
    """Repeats that end within what is left of so many seconds, by what those that have ended took
    in the mean; before the first one, by what the `chosen` trials took."""
    if seconds is None:
        return math.inf
    ended = [_seconds(trial) for trial in repeats(study) if "result" in trial.user_attrs]
    known = study.trials()
    each = mean(ended or [_seconds(known[number]) for number in chosen] or [0.0])
    if each == 0:
        return math.inf
    return max(0.0, (seconds - sum(ended)) // each)


def _seconds(trial: FrozenTrial) -> float:
    return 60 * TrialResult.model_validate(trial.user_attrs["result"]).minutes


def losses_of(study: SweepStudy) -> tuple[dict[int, dict[int, float]], set[int]]:
    """Losses by trial and seed, and the trials of which a repeat did not complete."""
    losses: dict[int, dict[int, float]] = {}
    failed: set[int] = set()
    for trial in repeats(study):
        of, seed = trial.user_attrs[REPEAT_OF], trial.user_attrs[REPEAT_SEED]
        if trial.state == TrialState.COMPLETE and trial.value is not None:
            losses.setdefault(of, {})[seed] = study.spec.objective.as_loss(trial.value)
        elif trial.state.is_finished():
            failed.add(of)
    return losses, failed


def recorded_trials(study: SweepStudy) -> list[Recorded]:
    """The trials that a leaderboard ranks."""
    found, given = [], given_numbers(study)
    for trial in study.launched():
        if trial.state != TrialState.COMPLETE or trial.value is None:
            continue
        result = TrialResult.model_validate(trial.user_attrs["result"])
        if study.feasible(result):
            spec = study.spec.trial.with_params(trial.user_attrs["params"])
            found.append(
                Recorded(
                    number=trial.number,
                    loss=study.spec.objective.as_loss(trial.value),
                    method=str(flatten(spec)["adapter.method"]),
                    trainable_parameters=result.trainable_parameters or 0,
                    is_given=trial.number in given,
                )
            )
    return found


def fresh_seeds(study: SweepStudy, number: int, purpose: str = "confirm") -> list[int]:
    """Seeds that no trial of the sweep was trained under, the same at every launch; others for
    another purpose."""
    used = {trial.user_attrs["params"].get("seed", study.spec.seed) for trial in study.launched()}
    seeds: list[int] = []
    turn = 0
    while len(seeds) < number:
        text = f"{purpose} {study.spec.seed} {turn}"
        seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little")
        turn += 1
        if seed not in used and seed not in seeds:
            seeds.append(seed)
    return seeds
