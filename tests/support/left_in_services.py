"""What a sweep on a cluster left behind: its study in PostgreSQL, its objects, its runs in MLflow.

Read by optuna, boto3 and SQL, past our own code.
"""

import json
from pathlib import Path
from typing import Any

import optuna

from tests.support.left_behind import TrialRecord, comparable, runs_by_trial
from tests.support.object_store import ObjectStore


def read(study_url: str, store: ObjectStore, mlflow: Path, name: str) -> dict[int, TrialRecord]:
    """All trials of a sweep by number; `mlflow` is the server's database."""
    runs = runs_by_trial(mlflow, name)
    keys = set(store.keys(f"{name}/"))
    found = {}
    for trial in optuna.load_study(study_name=name, storage=study_url).get_trials():
        attributes: dict[str, Any] = dict(trial.user_attrs)
        if "result" in attributes:
            attributes["result"] = comparable(attributes["result"])
        key = f"{name}/trials/{trial.number:04d}/result.json"
        found[trial.number] = TrialRecord(
            state=trial.state.name,
            params=trial.params,
            value=trial.value if trial.state.name == "COMPLETE" else None,
            rungs=trial.intermediate_values,
            constraints={k: v for k, v in trial.system_attrs.items() if "constraint" in k},
            attributes={
                kind: attributes.get(kind) for kind in ("kind", "params", "fingerprint", "result")
            },
            file=comparable(json.loads(store.read(key))) if key in keys else None,
            runs=runs.get(trial.number, []),
        )
    return found
