"""All trials of a study as data, also those that no leaderboard has: rejected, run again."""

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from optuna.trial import FrozenTrial

from peft_jobs import State, TrialResult
from sweeps.results.states import state_of
from sweeps.study.lease import Holder
from sweeps.study.study import SweepStudy

if TYPE_CHECKING:
    import pandas

COLUMNS = ("number", "state", "kind", "attempt", "started", "ended")


@dataclass(frozen=True)
class RecordedTrial:
    """One trial as the study knows it."""

    number: int
    state: str
    """One of `sweeps.results.states.STATES`, or WAITING before a retry."""
    kind: str | None
    """Why a trial that did not complete ended."""
    attempt: int | None
    """The newest one; None if the trial was never launched."""
    started: datetime | None
    """When it was asked for, in the local time of its driver, as Optuna keeps it."""
    ended: datetime | None
    params: dict[str, Any]
    metrics: dict[str, float]
    """Of the last evaluation of a trial that has ended."""
    error: str | None
    """What went wrong, or why the trial was turned away."""


@dataclass(frozen=True)
class Trials:
    """The trials of a sweep, by number."""

    rows: tuple[RecordedTrial, ...]

    def to_frame(self) -> "pandas.DataFrame":
        """One row per trial; a column per parameter and per metric, by its own name."""
        import pandas

        rows = [
            {
                **{name: getattr(row, name) for name in COLUMNS},
                **row.params,
                **row.metrics,
                "error": row.error,
            }
            for row in self.rows
        ]
        names = dict.fromkeys(
            [
                *COLUMNS,
                *(name for row in self.rows for name in row.params),
                *(name for row in self.rows for name in row.metrics),
                "error",
            ]
        )
        times = dict.fromkeys(("started", "ended"), "datetime64[us]")
        return pandas.DataFrame(rows, columns=list(names)).astype({"attempt": "Int64", **times})


def read_trials(study: SweepStudy) -> Trials:
    """All trials of the study as it stands."""
    holder = study.holder
    return Trials(tuple(_trial(trial, holder) for trial in study.trials()))


def _trial(trial: FrozenTrial, holder: Holder | None) -> RecordedTrial:
    known = trial.user_attrs
    record = known.get("result")
    result = TrialResult.model_validate(record) if record else TrialResult(state=State.RUNNING)
    return RecordedTrial(
        number=trial.number,
        state=state_of(trial, holder),
        kind=known.get("kind"),
        attempt=known.get("attempt"),
        started=trial.datetime_start,
        ended=trial.datetime_complete,
        params=known.get("params", {}),
        metrics=dict(result.metrics),
        error=result.error or known.get("reason"),
    )
