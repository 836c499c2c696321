"""Ranking: the leaderboard as a pure function of the study.

Complete, feasible trials by the objective on the validation rows; pruned and failed ones follow
unranked. Rows are ranked only if they saw the same base, data and template.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from optuna.trial import FrozenTrial

from peft_jobs import State, TrialResult
from sweeps.confirmation.confirmed import confirmation_of
from sweeps.results.comparable import changed_contents, check_comparable
from sweeps.results.final_training import final_training
from sweeps.results.leaderboard import Leaderboard, Row
from sweeps.results.states import minutes_so_far, state_of
from sweeps.spec.metrics import as_loss
from sweeps.study.lease import Holder
from sweeps.study.study import SweepStudy


def make_leaderboard(study: SweepStudy) -> Leaderboard:
    """The leaderboard of the study as it stands; SpecError if its rows cannot be compared."""
    trials = study.launched()
    changed = changed_contents(trials)
    check_comparable([trial for trial in trials if trial.number not in changed])
    objective = study.spec.objective
    holder = study.holder
    rows = [_row(trial, study, holder, changed.get(trial.number)) for trial in trials]

    def order(row: Row) -> tuple[bool, bool, float, int]:
        value = objective.as_loss(row.value) if row.value is not None else 0.0
        return (row.rank is None, row.value is None, value, row.number)

    rows.sort(key=order)
    known = study.optuna.user_attrs
    baseline, majority = (
        known.get(name, {}).get(objective.metric) for name in ("baseline", "majority")
    )
    board = Leaderboard(
        study.spec.name,
        objective.metric,
        objective.direction,
        (),
        baseline,
        majority=majority,
        goes_on=study.spec.trial.adapter.source is not None,
        confirmation=confirmation_of(study),
        final=final_training(study),
    )
    return replace(board, rows=tuple(_ranked(rows, board)))


def _ranked(rows: Sequence[Row], board: Leaderboard) -> Iterator[Row]:
    """The rows, which are in order, with their ranks, and with what they do not beat."""
    rank, before = 1, None
    for place, row in enumerate(rows, start=1):
        if row.rank is None or row.value is None:
            yield row
            continue
        if row.value != before:
            rank, before = place, row.value
        loss = as_loss(row.value, board.direction)
        known = board.references.items()
        unbeaten = (words for words, v in known if loss >= as_loss(v, board.direction))
        yield replace(row, rank=rank, unbeaten=tuple(unbeaten))


def _row(trial: FrozenTrial, study: SweepStudy, holder: Holder | None, changed: str | None) -> Row:
    record = trial.user_attrs.get("result")
    result = TrialResult.model_validate(record) if record else TrialResult(state=State.RUNNING)
    ranked = result.state is State.COMPLETE and study.feasible(result) and changed is None
    value = trial.value if trial.value is not None else _last(trial)
    return Row(
        rank=0 if ranked else None,
        number=trial.number,
        state=state_of(trial, holder),
        kind=result.kind,
        value=value,
        peak_memory_bytes=result.peak_memory_bytes,
        trainable_parameters=result.trainable_parameters,
        minutes=result.minutes if record else minutes_so_far(trial, holder),
        params=trial.user_attrs.get("params", {}),
        metrics=dict(result.metrics),
        adapter=result.adapter,
        error=result.error,
        memory=dict(result.memory),
        changed=changed,
    )


def _last(trial: FrozenTrial) -> float | None:
    values = trial.intermediate_values
    return values[max(values)] if values else None
