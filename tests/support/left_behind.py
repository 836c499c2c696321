"""What a sweep left behind, read past our own code: SQL on both databases, JSON of the files."""

import json
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_OF_THE_MACHINE = ("seconds", "memory", "provenance", "traceback")
"""Fields of a result that two runs of one trial do not share."""


@dataclass(frozen=True)
class TrialRecord:
    """One trial in the study, in its files and in MLflow, without attempts and times."""

    state: str
    params: dict[str, float]
    """As Optuna stores them, by name."""
    value: float | None
    rungs: dict[int, float]
    constraints: dict[str, float]
    attributes: dict[str, Any]
    """`kind`, `params`, `fingerprint` and `result` of the user attributes."""
    file: dict[str, Any] | None
    """`result.json`; None if there is none."""
    runs: list[dict[str, Any]]
    """Status, tags, params and points (metric, step, value) of each of its runs in MLflow."""

    @property
    def counts(self) -> bool:
        """Whether the trial was launched, not turned away before."""
        return self.attributes.get("kind") not in ("rejected", "duplicate")


def read(storage: Path, name: str, mlflow: Path | None = None) -> dict[int, TrialRecord]:
    """All trials of a sweep by number; `mlflow` is a server's database, if not the storage's."""
    runs = runs_by_trial(mlflow or storage / "mlflow.db", name)
    found = {}
    with closing(sqlite3.connect(storage / "optuna.db", timeout=60)) as db:
        trials = db.execute(
            "SELECT trial_id, number, state FROM trials JOIN studies USING (study_id) "
            "WHERE study_name = ? ORDER BY number",
            (name,),
        ).fetchall()
        for key, number, state in trials:
            found[number] = _trial(db, key, state, storage / name, number, runs.get(number, []))
    return found


def parent_runs(mlflow: Path, name: str) -> list[str]:
    """Status of each run of the sweep itself: there must be one."""
    with closing(sqlite3.connect(mlflow, timeout=60)) as db:
        query = (
            "SELECT status FROM runs JOIN tags USING (run_uuid) WHERE tags.key = 'sweep' "
            "AND tags.value = ? AND run_uuid NOT IN "
            "(SELECT run_uuid FROM tags WHERE key = 'mlflow.parentRunId')"
        )
        return [status for (status,) in db.execute(query, (name,))]


def differences(one: Any, other: Any, tolerance: float = 0.0, where: str = "") -> list[str]:
    """What two records, or sweeps of records, do not share; numbers may differ by `tolerance`."""
    if isinstance(one, TrialRecord) and isinstance(other, TrialRecord):
        one, other = asdict(one), asdict(other)
    if isinstance(one, dict) and isinstance(other, dict):
        found = [f"{where}/{key}: only in one" for key in one.keys() ^ other.keys()]
        for key in one.keys() & other.keys():
            found += differences(one[key], other[key], tolerance, f"{where}/{key}")
        return found
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [d for i, (a, b) in pairs for d in differences(a, b, tolerance, f"{where}/{i}")]
    if isinstance(one, float) and isinstance(other, float) and abs(one - other) <= tolerance:
        return []
    return [] if one == other else [f"{where}: {one!r} is not {other!r}"]


def disagreements(records: dict[int, TrialRecord]) -> list[str]:
    """Where study, files and MLflow tell different stories of a trial that has ended."""
    found = []
    statuses = {"COMPLETE": "FINISHED", "PRUNED": "FINISHED", "FAIL": "FAILED"}
    for number, record in records.items():
        if not record.counts:
            if record.file is not None or record.runs:
                found.append(f"{number}: was never launched, but has a result or a run")
            continue
        if record.state not in statuses:
            found.append(f"{number}: is {record.state}")
            continue
        if record.file != record.attributes["result"]:
            found.append(f"{number}: result.json is not what the study holds: {record.file}")
        if len(record.runs) != 1:
            found.append(f"{number}: has {len(record.runs)} runs in MLflow")
            continue
        (run,), result = record.runs, record.attributes["result"]
        kind = record.attributes["kind"] or "complete"
        told = (run["status"], run["tags"]["trial.state"], run["tags"]["trial.kind"])
        if told != (statuses[record.state], record.state, kind):
            found.append(f"{number}: {record.state}, {kind} in the study, {told} in MLflow")
        points = {(name, step): value for name, step, value in run["points"]}
        if len(points) != len(run["points"]):
            found.append(f"{number}: a step of a metric was recorded twice: {run['points']}")
        for name, value in result["metrics"].items():
            if points.get((name, result["step"])) != value:
                found.append(f"{number}: the final {name} is not in MLflow")
        missing = set(record.rungs.values()) - {value for _, _, value in run["points"]}
        if missing:
            found.append(f"{number}: rung values {missing} are not in MLflow")
    return found


def _trial(
    db: sqlite3.Connection,
    key: int,
    state: str,
    folder: Path,
    number: int,
    runs: list[dict[str, Any]],
) -> TrialRecord:
    def rows(columns: str, table: str) -> dict[Any, Any]:
        return dict(db.execute(f"SELECT {columns} FROM {table} WHERE trial_id = ?", (key,)))

    attributes = _decoded(rows("key, value_json", "trial_user_attributes"))
    if "result" in attributes:
        attributes["result"] = comparable(attributes["result"])
    system = _decoded(rows("key, value_json", "trial_system_attributes"))
    file = folder / "trials" / f"{number:04d}" / "result.json"
    return TrialRecord(
        state=state,
        params=rows("param_name, param_value", "trial_params"),
        value=rows("objective, value", "trial_values").get(0),
        rungs=rows("step, intermediate_value", "trial_intermediate_values"),
        constraints={k: v for k, v in system.items() if "constraint" in k},
        attributes={
            name: attributes.get(name) for name in ("kind", "params", "fingerprint", "result")
        },
        file=comparable(json.loads(file.read_text())) if file.exists() else None,
        runs=runs,
    )


def runs_by_trial(database: Path, name: str) -> dict[int, list[dict[str, Any]]]:
    """The child runs of a sweep by trial; none without a database."""
    found: dict[int, list[dict[str, Any]]] = {}
    if not database.exists():
        return found
    with closing(sqlite3.connect(database, timeout=60)) as db:
        query = "SELECT run_uuid, status FROM runs JOIN tags USING (run_uuid) WHERE tags.key = ?"
        of_sweep = f"{query} AND tags.value = ? AND lifecycle_stage = 'active'"
        for run, status in db.execute(of_sweep, ("sweep", name)).fetchall():
            tags = dict(db.execute("SELECT key, value FROM tags WHERE run_uuid = ?", (run,)))
            if "trial.number" not in tags:
                continue
            points = db.execute(
                "SELECT key, step, value FROM metrics WHERE run_uuid = ? ORDER BY 1, 2, 3", (run,)
            ).fetchall()
            params = db.execute("SELECT key, value FROM params WHERE run_uuid = ?", (run,))
            found.setdefault(int(tags["trial.number"]), []).append(
                {
                    "status": status,
                    "tags": {
                        k: v for k, v in tags.items() if k.startswith(("trial.s", "trial.ki"))
                    },
                    "params": dict(params),
                    "points": [p for p in points if not p[0].startswith(("seconds/", "memory/"))],
                }
            )
    return found


def comparable(result: dict[str, Any]) -> dict[str, Any]:
    """A result without what two runs of one trial do not share."""
    return {name: value for name, value in result.items() if name not in _OF_THE_MACHINE}


def _decoded(rows: dict[str, str]) -> dict[str, Any]:
    return {name: json.loads(text) for name, text in rows.items()}


def wait_for_change(database: Path, seconds: float, gone: Callable[[], bool] | None = None) -> None:
    """Until the study shows that a trial was started, taken up, reported or ended.

    TimeoutError after `seconds`; returns at once when `gone()`, for a driver that has ended.
    """
    deadline, before = time.monotonic() + seconds, _mark(database)
    while _mark(database) == before:
        if time.monotonic() > deadline:
            raise TimeoutError(f"no trial went on for {seconds:g} s")
        if gone():
            return False
        time.sleep(0.05)
    return True


def _mark(database: Path) -> tuple[Any, ...]:
    if not database.exists():
        return ()
    with closing(sqlite3.connect(database, timeout=60)) as db:
        try:
            return (
                *db.execute("SELECT COUNT(*) FROM trial_intermediate_values").fetchone(),
                *db.execute(
                    "SELECT SUM(CAST(value_json AS INTEGER)) FROM trial_user_attributes "
                    "WHERE key = 'attempt'"
                ).fetchone(),
                *db.execute("SELECT COUNT(*) FROM trials WHERE state != 'RUNNING'").fetchone(),
            )
        except sqlite3.OperationalError:  # the tables are not there yet
            return ()
