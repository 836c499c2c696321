"""What a driver says about its sweep and trials, whoever listens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

RunStatus = Literal["FINISHED", "FAILED"]
"""A trial that is complete or pruned is FINISHED, a failed one FAILED; MLflow shows runs that were
KILLED as failures."""


@dataclass(frozen=True)
class Artifact:
    """A file, or a folder's content, to be uploaded into the folder `artifact_path` of a run.

    Read when it is delivered, never moved or deleted; so it must stay until the sweep's end.
    """

    path: Path
    artifact_path: str = ""
    optional: bool = False
    """Whether nothing is wrong if it is not there by then."""


@dataclass(frozen=True)
class Dataset:
    """Rows that a run has used; MLflow's table has a column for them."""

    name: str
    digest: str
    """Of the rows as they were used, 36 characters at most."""
    source: str
    """A path or a URL; of the Hub, an id."""
    is_on_hub: bool
    context: Literal["training", "validation"]
    num_rows: int | None = None
    """As tokenized: a long row may be several."""


class Tracker(Protocol):
    """Where a sweep and its trials are mirrored. Times are milliseconds since the epoch.

    Every call may be repeated after a restart: a run is found again by its tag, params stay as
    first recorded (a changed one becomes the tag `changed.<name>`), and a step of a metric that is
    already there is not recorded twice (the first value stays, as in the study).
    """

    def sweep_started(
        self,
        params: Mapping[str, object],
        tags: Mapping[str, str],
        artifacts: Sequence[Artifact],
        datasets: Sequence[Dataset] = (),
    ) -> None:
        """Create or reopen the parent run."""
        ...

    def sweep_updated(self, tags: Mapping[str, str], artifacts: Sequence[Artifact]) -> None:
        """Refresh the tags and artifacts of the parent run, which stays as it is."""
        ...

    def trial_started(
        self,
        number: int,
        run_name: str,
        params: Mapping[str, object],
        tags: Mapping[str, str],
        time_ms: int,
    ) -> None:
        """Create or reopen the child run of trial `number`."""
        ...

    def trial_progress(
        self, number: int, metrics: Mapping[str, float], step: int, time_ms: int
    ) -> None:
        """Record metrics at an optimizer step."""
        ...

    def trial_tagged(self, number: int, tags: Mapping[str, str], time_ms: int) -> None:
        """Set tags of a trial's run, which stays as it is."""
        ...

    def trial_ended(
        self,
        number: int,
        status: RunStatus,
        metrics: Mapping[str, float],
        tags: Mapping[str, str],
        artifacts: Sequence[Artifact],
        time_ms: int,
        datasets: Sequence[Dataset] = (),
    ) -> None:
        """Record the final metrics and end the run.

        A metric that has steps gets its final value at its run's last step. One that has none gets
        it at step 0, where the UI compares trials by bars.
        """
        ...

    def sweep_ended(
        self,
        status: RunStatus,
        metrics: Mapping[str, float],
        tags: Mapping[str, str],
        artifacts: Sequence[Artifact],
    ) -> None:
        """End the parent run. Children that did not end stay RUNNING, for the next driver."""
        ...

    def has_ended(self, number: int) -> bool:
        """Whether `trial_ended` was called for trial `number`, by this driver or an earlier one."""
        ...

    def waits(self, number: int) -> bool:
        """Whether something of trial `number` was not delivered yet, or an artifact never can."""
        ...

    def close(self, timeout_seconds: float) -> int:
        """Deliver for at most this long; the number of operations that still wait."""
        ...


class NoTracker:
    """`tracking: none`."""

    def _nothing(self, *args: object, **kwargs: object) -> None:
        pass

    sweep_started = sweep_updated = sweep_ended = _nothing
    trial_started = trial_progress = trial_tagged = trial_ended = _nothing

    def has_ended(self, number: int) -> bool:
        return True

    def waits(self, number: int) -> bool:
        return False

    def close(self, timeout_seconds: float) -> int:
        return 0
