"""Leaderboard: which configuration won, and what it must beat, as data."""

from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from sweeps.confirmation.confirmed import Confirmation
from sweeps.results.final_training import FinalTraining
from sweeps.spec.metrics import as_loss

if TYPE_CHECKING:
    import pandas

COLUMNS = ("trainable_parameters", "minutes")
"""Of a row's `numbers`, what every table has beside the objective."""
SHORT = {
    "adapter before training": "start",
    "base without adapter": "base",
    "mean of the training rows": "mean",
    "majority class": "majority",
}
"""The words for references, in a table's column."""
FIELDS = (
    *("rank", "number", "state", "kind", "value"),
    *("peak_memory_bytes", "trainable_parameters", "minutes"),
    *("difference_low", "difference_high", "note"),
)
"""Of a row, what a table of all that is known has beside its parameters and metrics."""


_LATER = {"majority": None, "goes_on": False, "confirmation": None, "final": None}
"""Of a board, what is written where it is not this: earlier versions knew nothing of it."""


@dataclass(frozen=True)
class Row:
    """One trial. `rank` is None unless it is complete, feasible, and comparable; equal values share
    one."""

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
    changed: str | None = None
    """What a complete trial saw that had been changed in place, for which it has no rank."""
    interval: tuple[float, float] | None = None
    """Of the difference to the first row's objective on other validation rows, see
    `results.told_apart`."""
    unbeaten: tuple[str, ...] = ()
    """Of the board's references, those that a ranked row does not beat."""

    @property
    def is_told_apart(self) -> bool | None:
        """Whether the validation rows tell this adapter from the first one; None if not known."""
        return None if self.interval is None else not self.interval[0] <= 0 <= self.interval[1]

    @property
    def note(self) -> str:
        """What must be known before the row is believed, in a few words."""
        told = [self.changed] if self.changed is not None else []
        told += ["not told apart"] * (self.is_told_apart is False)
        told += [f"no better than the {SHORT[words]}" for words in self.unbeaten]
        return "; ".join(told)

    @property
    def known(self) -> dict[str, Any]:
        """All of a row that a table shows, by column: fields, parameters, metrics."""
        low, high = self.interval or (None, None)
        told = {"difference_low": low, "difference_high": high, "note": self.note or None}
        fields = {name: told[name] if name in told else getattr(self, name) for name in FIELDS}
        return {**fields, **self.params, **self.metrics}


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
    final: FinalTraining | None = None
    """Of a final training, what it came to."""

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
    def entries(self) -> "list[Row | tuple[str, float]]":
        """The rows with the references among them, (words, value): each before the first ranked row
        that does not beat it."""
        ranked = [row for row in self.rows if row.rank is not None]
        found: list[Row | tuple[str, float]] = [*self.rows]
        order = sorted(self.references.items(), key=lambda item: as_loss(item[1], self.direction))
        for words, value in reversed(order):
            place = sum(words not in row.unbeaten for row in ranked)
            found.insert(place, (words, value))
        return found

    @property
    def best(self) -> Row | None:
        """The winner; None while no feasible trial is complete."""
        return self.rows[0] if self.rows and self.rows[0].rank == 1 else None

    @cached_property
    def has_notes(self) -> bool:
        """Whether some row has one."""
        return any(row.note for row in self.rows)

    @property
    def chosen(self) -> Row | None:
        """The row to export: what a confirmation recommends, the median seed of a final training,
        otherwise the winner."""
        if self.best is None:
            return None
        number = self.best.number
        if self.confirmation is not None:
            number = self.confirmation.recommended
        if self.final is not None:
            number = self.final.median
        return next(row for row in self.rows if row.number == number)

    @cached_property
    def varying(self) -> list[str]:
        """The parameters whose value differs between rows."""
        names = dict.fromkeys(name for row in self.rows for name in row.params)
        seen = {n: {repr(row.params[n]) for row in self.rows if n in row.params} for n in names}
        gaps = {n for n in names if any(n not in row.params for row in self.rows)}
        return [n for n in names if len(seen[n]) + (n in gaps) > 1]

    @cached_property
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
        for name, absent in _LATER.items():
            if known[name] is absent:  # as earlier versions have recorded it
                del known[name]
        for line, row in zip(known["rows"], self.rows, strict=True):
            for name in ("changed", "interval", "unbeaten"):
                if not line[name]:
                    del line[name]
            line |= {"note": row.note} if row.note else {}
        return {**known, "varying": self.varying}
