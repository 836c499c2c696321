"""What trials reported while they ran, read from the `metrics.jsonl` of their attempts."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from optuna.trial import FrozenTrial
from pydantic import ValidationError

from peft_jobs import Progress
from peft_jobs.storage.attempt_folder import METRICS_FILE
from sweeps.errors import Unavailable
from sweeps.records.layout import SweepFolder
from sweeps.study.study import SweepStudy

if TYPE_CHECKING:
    import pandas

COLUMNS = ("trial", "attempt", "step", "samples", "tokens", "rung")


@dataclass(frozen=True)
class CurvePoint:
    """One report that measured something."""

    trial: int
    attempt: int
    progress: Progress


@dataclass(frozen=True)
class Curves:
    """The reports of a sweep's trials, by trial, then in the order of steps."""

    rows: tuple[CurvePoint, ...]

    def to_frame(self) -> "pandas.DataFrame":
        """One row per report; a column per metric, empty where a report has none of that name."""
        import pandas

        rows = [
            {
                "trial": row.trial,
                "attempt": row.attempt,
                **row.progress.model_dump(include={"step", "samples", "tokens", "rung"}),
                **row.progress.metrics,
            }
            for row in self.rows
        ]
        metrics = dict.fromkeys(name for row in self.rows for name in row.progress.metrics)
        return pandas.DataFrame(rows, columns=[*COLUMNS, *metrics]).astype({"rung": "Int64"})


def read_curves(
    study: SweepStudy, folder: SweepFolder, numbers: Collection[int] | None = None
) -> Curves:
    """The reports so far of the trials of these `numbers`, by default of all; Unavailable if the
    storage cannot be read.

    An attempt that went on from a checkpoint repeats the steps that came after it: a step is
    given once, as the last attempt that made it measured it.
    """
    trials = (t for t in study.trials() if numbers is None or t.number in numbers)
    return Curves(tuple(row for trial in trials for row in _reports(trial, folder)))


def _reports(trial: FrozenTrial, folder: SweepFolder) -> Iterator[CurvePoint]:
    by_step: dict[int, list[CurvePoint]] = {}
    for attempt in range(1, int(trial.user_attrs.get("attempt", 0)) + 1):
        made: dict[int, list[CurvePoint]] = {}
        for progress in _progress(folder, trial.number, attempt):
            report = CurvePoint(trial.number, attempt, progress)
            made.setdefault(progress.step, []).append(report)
        by_step |= made
    for step in sorted(by_step):
        yield from by_step[step]


def _progress(folder: SweepFolder, number: int, attempt: int) -> Iterator[Progress]:
    """The reports of an attempt with a metric; others only tell of a checkpoint."""
    path = folder.attempt(number, attempt) / METRICS_FILE
    try:
        text = folder.read(path) or ""
    except OSError as error:
        raise Unavailable(f"{folder.location_of(path)} cannot be read: {error}") from error
    for line in text.splitlines():
        try:
            progress = Progress.model_validate_json(line)
        except ValidationError:
            continue  # a host may be writing it just now, or its disk was full
        if progress.metrics:
            yield progress
