"""Mirrors a sweep into MLflow, at the cost of one row in a local file for each call.

No method waits for MLflow or raises because of it. A daemon thread delivers; what it could not
deliver when the driver ends, the next driver of the sweep or `deliver_pending` does.
"""

import logging
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from sweeps.tracking.destination import Destination
from sweeps.tracking.drain import Drain
from sweeps.tracking.outbox import SWEEP, UPLOADS, NewOp, Outbox
from sweeps.tracking.tracker import Artifact, Dataset, RunStatus
from sweeps.tracking.values import fit_params, fit_tags, split_metrics
from sweeps.tracking.view import View, view_tag

log = logging.getLogger(__name__)


class MlflowTracker:
    """Mirrors one sweep into MLflow through the outbox at `outbox_path`.

    `tracking_uri` is a server (`http://...`) or a database (`sqlite:///...`). With a database the
    artifacts lie under `artifact_root`, a folder or an object-store URL; beside a SQLite file it
    defaults to `mlartifacts`. `sweep_key` identifies the sweep among all of the experiment's, and
    must be the same after a restart; it defaults to the sweep's name, so give one that no other
    sweep has when several storages share a server. `view` is how the UI shows the trials. One
    tracker at a time uses an outbox.

    Raises ValueError for arguments that could never work, sqlite3.Error when the outbox cannot be
    opened.
    """

    def __init__(
        self,
        outbox_path: Path,
        tracking_uri: str,
        experiment: str,
        sweep: str,
        artifact_root: Path | str | None = None,
        sweep_key: str | None = None,
        view: View | None = None,
    ) -> None:
        destination = Destination(
            tracking_uri, experiment, sweep, sweep_key or sweep, artifact_root
        )
        self._sweep = sweep
        self._view = view
        self._outbox = Outbox(outbox_path)
        self._drain = Drain(self._outbox, destination)
        self._drain.start()
        self._left: int | None = None
        self._lost: set[str] = set()
        """Keys with an artifact that MLflow will not get: not even queued, or refused."""

    def sweep_started(
        self,
        params: Mapping[str, object],
        tags: Mapping[str, str],
        artifacts: Sequence[Artifact],
        datasets: Sequence[Dataset] = (),
    ) -> None:
        self._start(SWEEP, self._sweep, params, tags, artifacts, _now_ms(), datasets)

    def sweep_updated(self, tags: Mapping[str, str], artifacts: Sequence[Artifact]) -> None:
        self._start(SWEEP, self._sweep, {}, tags, artifacts, _now_ms())

    def trial_started(
        self,
        number: int,
        run_name: str,
        params: Mapping[str, object],
        tags: Mapping[str, str],
        time_ms: int,
    ) -> None:
        tags = {"trial.number": str(number), **tags}
        self._start(str(number), run_name, params, tags, (), time_ms)

    def trial_progress(
        self, number: int, metrics: Mapping[str, float], step: int, time_ms: int
    ) -> None:
        finite, not_finite = split_metrics(metrics, step)
        body = {"metrics": finite, "tags": not_finite, "step": step, "time_ms": time_ms}
        self._put(NewOp(str(number), "progress", body))

    def trial_tagged(self, number: int, tags: Mapping[str, str], time_ms: int) -> None:
        body = {"metrics": {}, "tags": dict(tags), "step": 0, "time_ms": time_ms}
        self._put(NewOp(str(number), "progress", body))

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
        self._end(str(number), status, metrics, tags, artifacts, time_ms, datasets)

    def sweep_ended(
        self,
        status: RunStatus,
        metrics: Mapping[str, float],
        tags: Mapping[str, str],
        artifacts: Sequence[Artifact],
    ) -> None:
        self._end(SWEEP, status, metrics, tags, artifacts, _now_ms())

    def has_ended(self, number: int) -> bool:
        return self._outbox.has_ended(str(number))

    def waits(self, number: int) -> bool:
        key = str(number)
        if self._left is not None:
            return self._left > 0 or key in self._lost
        # In this order: what is refused in between is seen.
        return self._outbox.pending(key) > 0 or key in self._lost | self._refused()

    def close(self, timeout_seconds: float) -> int:
        if self._left is None:
            self._left = self._drain.close(timeout_seconds)
            self._lost |= self._refused()
            if not self._drain.is_alive():
                self._outbox.close()
        return self._left

    def _refused(self) -> set[str]:
        return {key for key, kind, _ in self._outbox.dead_letters() if kind == "artifact"}

    def _start(
        self,
        key: str,
        run_name: str,
        params: Mapping[str, object],
        tags: Mapping[str, str],
        artifacts: Sequence[Artifact],
        time_ms: int,
        datasets: Sequence[Dataset] = (),
    ) -> None:
        fit, fit_tag = fit_params(params), fit_tags({"sweep": self._sweep, **tags})
        body = {
            "run_name": run_name,
            "params": fit.values,
            "tags": fit_tag.values,
            "experiment_tags": self._view_tag(time_ms) if key == SWEEP else {},
            "time_ms": time_ms,
            "datasets": [asdict(dataset) for dataset in datasets],
        }
        uploads = self._uploads(key, artifacts, fit.artifacts | fit_tag.artifacts)
        self._put(NewOp(key, "start", body), *uploads)

    def _view_tag(self, time_ms: int) -> dict[str, str]:
        return view_tag(self._sweep, self._view, time_ms) if self._view else {}

    def _end(
        self,
        key: str,
        status: RunStatus,
        metrics: Mapping[str, float],
        tags: Mapping[str, str],
        artifacts: Sequence[Artifact],
        time_ms: int,
        datasets: Sequence[Dataset] = (),
    ) -> None:
        finite, not_finite = split_metrics(metrics, step=None)
        fit = fit_tags({**tags, **not_finite})
        body = {
            "status": status,
            "metrics": finite,
            "tags": fit.values,
            "time_ms": time_ms,
            "datasets": [asdict(dataset) for dataset in datasets],
        }
        self._put(NewOp(key, "end", body), *self._uploads(key, artifacts, fit.artifacts))

    def _uploads(
        self, key: str, artifacts: Sequence[Artifact], texts: Mapping[str, str]
    ) -> Iterator[NewOp]:
        for file, text in texts.items():
            yield NewOp(key, "text", {"file": file, "text": text}, UPLOADS)
        folder = self._outbox.folder
        for artifact in artifacts:
            path = artifact.path.absolute()
            body = {
                "path": str(path.relative_to(folder) if path.is_relative_to(folder) else path),
                "artifact_path": artifact.artifact_path,
                "optional": artifact.optional,
            }
            yield NewOp(key, "artifact", body, UPLOADS)

    def _put(self, *ops: NewOp) -> None:
        try:
            self._outbox.put(*ops)
        except (sqlite3.Error, OSError) as error:  # a full disk, say: the study still has the truth
            log.error("could not queue %r of %s for MLflow: %s", ops[0].kind, ops[0].key, error)
            self._lost |= {op.key for op in ops if op.kind == "artifact"}
        self._drain.wake()


def deliver_pending(
    outbox_path: Path,
    tracking_uri: str,
    experiment: str,
    sweep: str,
    artifact_root: Path | str | None = None,
    sweep_key: str | None = None,
    timeout_seconds: float = 60,
) -> int:
    """Deliver what an ended driver left behind; the number of operations that still wait.

    Takes a `MlflowTracker`'s arguments, and must not run beside one.
    """
    tracker = MlflowTracker(outbox_path, tracking_uri, experiment, sweep, artifact_root, sweep_key)
    return tracker.close(timeout_seconds)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
