"""What to train, and how sure that is: the repeats of a study, compared and told."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from optuna.trial import FrozenTrial

from peft_jobs import TrialResult
from sweeps.confirmation.rounds import losses_of
from sweeps.confirmation.seeds import (
    Interval,
    Losses,
    RowNoise,
    Standing,
    chances,
    standings,
)
from sweeps.study.study import SweepStudy


@dataclass(frozen=True)
class Confirmed:
    """A configuration that was trained again under fresh seeds; intervals are of 95 %."""

    number: int
    """Of the trial that has it."""
    group: int
    """1 for those that are not told apart from the first one, 2 for the first of the rest ..."""
    recorded: float
    """The objective of that trial, by which it was chosen: too good, as the best of many is."""
    expected: Interval
    """The objective under a fresh seed, in the mean."""
    sd: float
    """Of the objective over seeds."""
    num_seeds: int
    behind: Interval
    """How much worse it is than the first one, over common seeds; the intervals of all hold
    together."""
    behind_winner: Interval
    """The same against the one that is recommended."""
    probability_best: float
    trainable_parameters: int | None
    peak_memory_bytes: int | None
    minutes: float
    params: dict[str, Any]


@dataclass(frozen=True)
class Confirmation:
    """What repeats have shown, the configuration with the best mean first."""

    metric: str
    direction: str
    rows: tuple[Confirmed, ...]
    failed: tuple[int, ...]
    """Trials of which a repeat did not complete."""
    num_repeats: int
    recommended: int
    """The trial to train: the smallest of those that are hardly behind the first one in the mean,
    see `near`."""
    holds_for_rows: bool = False
    """Whether intervals hold for fresh seeds and other rows together; otherwise for fresh seeds on
    the validation rows as they are."""

    @property
    def winner(self) -> Confirmed:
        """The row that is recommended."""
        return next(row for row in self.rows if row.number == self.recommended)

    @property
    def tied(self) -> list[Confirmed]:
        """The rows that are not told apart from the first one, itself among them."""
        return [row for row in self.rows if row.group == 1]


def confirmation_of(study: SweepStudy, drawn: RowNoise | None = None) -> Confirmation | None:
    """What the study's repeats have shown so far; None before two seeds of one configuration.

    `drawn` is what other rows would change: a part of all intervals and ties, if it is known.
    """
    all_losses, failed = losses_of(study)
    losses = {number: of for number, of in all_losses.items() if number not in failed}
    ranked = standings(losses, rows=drawn)
    if not ranked:
        return None
    best, groups, trials = chances(ranked), _groups(losses, drawn), study.trials()
    objective = study.spec.objective
    is_loss = objective.direction == "minimize"
    rows = tuple(
        _row(one, trials[one.number], groups[one.number], best[one.number], is_loss)
        for one in ranked
    )
    by_number = {row.number: row for row in rows}
    likely = near(ranked, None if study.spec.confirm is None else study.spec.confirm.tolerance)
    recommended = min((by_number[one.number] for one in likely), key=_size).number
    behind = {one.number: one.behind for one in standings(losses, against=recommended, rows=drawn)}
    repeated = sum(len(of) for of in all_losses.values()) + len(failed)
    return Confirmation(
        metric=objective.metric,
        direction=objective.direction,
        rows=tuple(replace(row, behind_winner=behind[row.number]) for row in rows),
        failed=tuple(sorted(failed)),
        num_repeats=repeated,
        recommended=recommended,
        holds_for_rows=drawn is not None,
    )


def _row(one: Standing, trial: FrozenTrial, group: int, best: float, is_loss: bool) -> Confirmed:
    result = TrialResult.model_validate(trial.user_attrs["result"])
    return Confirmed(
        number=one.number,
        group=group,
        recorded=float(trial.value or 0.0),
        expected=one.expected if is_loss else _turned(one.expected),
        sd=one.sd,
        num_seeds=one.num_seeds,
        behind=one.behind,
        behind_winner=one.behind,
        probability_best=best,
        trainable_parameters=result.trainable_parameters,
        peak_memory_bytes=result.peak_memory_bytes,
        minutes=result.minutes,
        params=dict(trial.user_attrs["params"]),
    )


def near(ranked: Sequence[Standing], tolerance: float | None = None) -> list[Standing]:
    """Those that are at most `tolerance` behind the first one in the mean; by default at most a
    standard error of that difference (Breiman et al. 1984, section 3.4.3), so none that is told
    apart.

    Few seeds tell little apart: the smallest of all that are tied may be far behind
    (`infra/benchmarks/recommend.md`).
    """
    return [
        one for one in ranked if one.behind.value <= (one.error if tolerance is None else tolerance)
    ]


def _groups(losses: Losses, drawn: RowNoise | None) -> dict[int, int]:
    """Tie groups, by configuration: each holds what is not told apart from its first one."""
    left = losses
    found: dict[int, int] = {}
    while ranked := standings(left, rows=drawn):
        group = 1 + max(found.values(), default=0)
        found |= {one.number: group for one in ranked if one.is_tied}
        left = {number: of for number, of in left.items() if number not in found}
    return found


def _size(row: Confirmed) -> tuple[float, float, float, int]:
    unknown = float("inf")
    parameters, memory = row.trainable_parameters, row.peak_memory_bytes
    return (
        unknown if parameters is None else parameters,
        unknown if memory is None else memory,
        row.minutes,
        row.number,
    )


def _turned(interval: Interval) -> Interval:
    """Of a loss, as the metric that is better when larger."""
    return Interval(-interval.value, -interval.high, -interval.low)
