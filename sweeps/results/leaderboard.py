"""Leaderboard: which configuration won, as a pure function of the study.

Ranks complete, feasible trials by the objective on the validation rows; pruned and failed trials
follow unranked. Rows are ranked only if they saw the same base, data and template.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from optuna.trial import FrozenTrial

from peft_jobs import SpecError, State, TrialResult
from sweeps.confirmation.confirmed import Confirmation, confirmation_of
from sweeps.results.states import minutes_so_far, state_of
from sweeps.study.lease import Holder
from sweeps.study.study import SweepStudy

if TYPE_CHECKING:
    import pandas

COMPARABLE = ("model", "data", "template")
"""Parts of a result's provenance that must agree."""
COLUMNS = ("trainable_parameters", "minutes")
"""Of a row's `numbers`, what every table has beside the objective."""
FIELDS = (
    *("rank", "number", "state", "kind", "value"),
    *("peak_memory_bytes", "trainable_parameters", "minutes"),
)
"""Of a row, what a table of all that is known has beside its parameters and metrics."""


@dataclass(frozen=True)
class Row:
    """One trial. `rank` is None unless it is complete and feasible."""

    rank: int | None
    number: int
    state: str
    """One of `sweeps.results.states.STATES`."""
    kind: str | None
    value: float | None
    """The objective: final if complete, otherwise the last one that was reported."""
    peak_memory_bytes: int | None
    trainable_parameters: int | None
    minutes: float
    params: dict[str, Any]
    metrics: dict[str, float]
    adapter: str | None
    """Relative to the sweep's folder."""
    error: str | None
    memory: dict[str, int] = field(default_factory=dict)
    """Every peak in bytes that was seen; `peak_memory_bytes` is the first of them that counts."""

    @property
    def known(self) -> dict[str, Any]:
        """All of a row that a table shows, by column: fields, parameters, metrics."""
        return {**{name: getattr(self, name) for name in FIELDS}, **self.params, **self.metrics}


@dataclass(frozen=True)
class Leaderboard:
    """Ranked rows first, then the others by value."""

    sweep: str
    metric: str
    direction: str
    rows: tuple[Row, ...]
    baseline: float | None
    """The objective of what trials begin with, before any training."""
    shown: tuple[str, ...] = ()
    """Of a row's `numbers`, what gets a column beside those that every table has."""
    majority: float | None = None
    """The objective of the majority class of the training rows, or the error of their mean."""
    goes_on: bool = False
    """Whether the baseline has the saved adapter that trials go on from; otherwise it is the base
    without an adapter."""
    confirmation: Confirmation | None = None
    """What repeats of the best trials under fresh seeds have shown."""

    @property
    def references(self) -> dict[str, float]:
        """The objective of what a winner must beat, by the words for it."""
        mean = self.metric.endswith(("/mse", "/loss"))  # a majority class has neither
        found = {
            "adapter before training" if self.goes_on else "base without adapter": self.baseline,
            "mean of the training rows" if mean else "majority class": self.majority,
        }
        return {words: value for words, value in found.items() if value is not None}

    @property
    def best(self) -> Row | None:
        """The winner; None while no feasible trial is complete."""
        return self.rows[0] if self.rows and self.rows[0].rank == 1 else None

    @property
    def varying(self) -> list[str]:
        """The parameters whose value differs between rows."""
        names = dict.fromkeys(name for row in self.rows for name in row.params)
        seen = {n: {repr(row.params[n]) for row in self.rows if n in row.params} for n in names}
        gaps = {n for n in names if any(n not in row.params for row in self.rows)}
        return [n for n in names if len(seen[n]) + (n in gaps) > 1]

    @property
    def columns(self) -> list[str]:
        """Of a table of all that is known of the rows: fields, parameters, metrics."""
        params = dict.fromkeys(name for row in self.rows for name in row.params)
        metrics = dict.fromkeys(name for row in self.rows for name in row.metrics)
        return [*FIELDS, *params, *metrics]

    def to_frame(self) -> "pandas.DataFrame":
        """A pandas frame with `columns` in plain numbers: bytes, minutes; a row per trial."""
        import pandas

        counts = dict.fromkeys(("rank", "peak_memory_bytes", "trainable_parameters"), "Int64")
        frame = pandas.DataFrame([row.known for row in self.rows], columns=self.columns)
        return frame.astype(counts)

    def to_json(self) -> dict[str, Any]:
        known = asdict(self)
        for name, absent in (("majority", None), ("goes_on", False), ("confirmation", None)):
            if known[name] is absent:  # as earlier versions have recorded it
                del known[name]
        return {**known, "varying": self.varying}


def make_leaderboard(study: SweepStudy) -> Leaderboard:
    """The leaderboard of the study as it stands; SpecError if its rows cannot be compared."""
    trials = study.launched()
    check_comparable(trials)
    objective = study.spec.objective
    holder = study.holder
    rows = [_row(trial, study, holder) for trial in trials]

    def order(row: Row) -> tuple[bool, bool, float, int]:
        value = objective.as_loss(row.value) if row.value is not None else 0.0
        return (row.rank is None, row.value is None, value, row.number)

    rows.sort(key=order)
    ranked = [
        Row(**{**row.__dict__, "rank": index + 1}) if row.rank is not None else row
        for index, row in enumerate(rows)
    ]
    known = study.optuna.user_attrs
    baseline, majority = (
        known.get(name, {}).get(objective.metric) for name in ("baseline", "majority")
    )
    return Leaderboard(
        study.spec.name,
        objective.metric,
        objective.direction,
        tuple(ranked),
        baseline,
        majority=majority,
        goes_on=study.spec.trial.adapter.source is not None,
        confirmation=confirmation_of(study),
    )


def check_comparable(trials: Sequence[FrozenTrial]) -> None:
    """SpecError unless all complete trials saw the same base, data and template."""
    for part in COMPARABLE:
        seen: dict[Any, int] = {}
        for trial in trials:
            result: Mapping[str, Any] = trial.user_attrs.get("result", {})
            if result.get("state") == State.COMPLETE:
                seen.setdefault(result["provenance"].get(part), trial.number)
        if len(seen) > 1:
            numbers = " and ".join(str(number) for number in seen.values())
            raise SpecError(
                f"trials {numbers} differ in their {part}, so their {part}-dependent losses cannot "
                f"be ranked together: sweep over one {part} at a time"
            )


def _row(trial: FrozenTrial, study: SweepStudy, holder: Holder | None) -> Row:
    record = trial.user_attrs.get("result")
    result = TrialResult.model_validate(record) if record else TrialResult(state=State.RUNNING)
    ranked = result.state is State.COMPLETE and study.feasible(result)
    value = trial.value if trial.value is not None else _last(trial)
    memory = result.memory.get("peak_allocated_bytes") or result.memory.get("peak_rss_bytes")
    return Row(
        rank=0 if ranked else None,
        number=trial.number,
        state=state_of(trial, holder),
        kind=result.kind,
        value=value,
        peak_memory_bytes=memory,
        trainable_parameters=result.trainable_parameters,
        minutes=result.minutes if record else minutes_so_far(trial, holder),
        params=trial.user_attrs.get("params", {}),
        metrics=dict(result.metrics),
        adapter=result.adapter,
        error=result.error,
        memory=dict(result.memory),
    )


def _last(trial: FrozenTrial) -> float | None:
    values = trial.intermediate_values
    return values[max(values)] if values else None
