"""Changes of one trial, and how they are written: all of them or none, whatever database it is.

Optuna writes each attribute in a transaction of its own. As nobody else writes (`lease`), it
is known what is there already, and plain INSERT and UPDATE will do.
"""

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial

Row = dict[str, Any]


@dataclass
class Changes:
    """What is to be written of a trial; later ones win. Attributes must be JSON."""

    params: dict[str, tuple[float, BaseDistribution]] = field(default_factory=dict)
    """In Optuna's internal representation; one that is there already stays."""
    user_attrs: dict[str, Any] = field(default_factory=dict)
    system_attrs: dict[str, Any] = field(default_factory=dict)
    values: dict[int, float] = field(default_factory=dict)
    """Intermediate values by step."""

    def __bool__(self) -> bool:
        return bool(self.params or self.user_attrs or self.system_attrs or self.values)

    def update(self, other: "Changes") -> None:
        self.params |= other.params
        self.user_attrs |= other.user_attrs
        self.system_attrs |= other.system_attrs
        self.values |= other.values

    def applied_to(self, trial: FrozenTrial) -> FrozenTrial:
        """A copy of the trial as it is with the changes, as the database would give it."""
        after = copy.copy(trial)
        new = {name: drawn for name, drawn in self.params.items() if name not in trial.params}
        after.params = trial.params | {n: d.to_external_repr(v) for n, (v, d) in new.items()}
        after.distributions = trial.distributions | {n: d for n, (_, d) in new.items()}
        after._user_attrs = trial.user_attrs | _plain(self.user_attrs)
        after._system_attrs = trial.system_attrs | _plain(self.system_attrs)
        after.intermediate_values = trial.intermediate_values | self.values
        return after


def _plain(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(attributes)) if attributes else {}


def write(storage: RDBStorage, before: FrozenTrial, changes: Changes) -> None:
    """Write the changes of a trial that is `before` in the database.

    Raises UpdateFinishedTrialError if it has ended there, KeyError if it is gone,
    StorageInternalError if the database fails: then it may or may not have been written.
    """
    trial_id = before._trial_id
    new_params = {n: drawn for n, drawn in changes.params.items() if n not in before.params}
    params = [
        {
            "trial_id": trial_id,
            "param_name": name,
            "param_value": value,
            "distribution_json": distribution_to_json(distribution),
        }
        for name, (value, distribution) in new_params.items()
    ]
    values = []
    for step, value in changes.values.items():
        stored, kind = models.TrialIntermediateValueModel.intermediate_value_to_stored_repr(value)
        row = {"step": step, "intermediate_value": stored, "intermediate_value_type": kind}
        values.append({"trial_id": trial_id, **row})
    try:
        with storage.engine.begin() as connection:
            state = connection.execute(_STATE, {"id": trial_id}).scalar_one_or_none()
            if state is None:
                raise KeyError(f"trial {before.number} is not in the database")
            if state.is_finished():
                raise UpdateFinishedTrialError(f"trial {before.number} has already ended")
            if params:
                connection.execute(sa.insert(models.TrialParamModel), params)
            for model, there, key, rows in (
                (_USER, before.user_attrs, "key", _attributes(trial_id, changes.user_attrs)),
                (_SYSTEM, before.system_attrs, "key", _attributes(trial_id, changes.system_attrs)),
                (_VALUES, before.intermediate_values, "step", values),
            ):
                _upsert(connection, model, there, key, rows)
    except sa.exc.IntegrityError:
        raise  # somebody else writes as well: no reason to try again
    except sa.exc.SQLAlchemyError as error:
        raise StorageInternalError(f"the changes of trial {before.number}: {error}") from error


_USER, _SYSTEM = models.TrialUserAttributeModel, models.TrialSystemAttributeModel
_VALUES = models.TrialIntermediateValueModel
_STATE = sa.select(models.TrialModel.state).where(models.TrialModel.trial_id == sa.bindparam("id"))


def _attributes(trial_id: int, attributes: Mapping[str, Any]) -> list[Row]:
    return [
        {"trial_id": trial_id, "key": key, "value_json": json.dumps(value)}
        for key, value in attributes.items()
    ]


def _upsert(
    connection: sa.Connection, model: Any, there: Mapping[Any, Any], key: str, rows: list[Row]
) -> None:
    """Insert the rows whose `key` is not `there`, update the others."""
    if new := [row for row in rows if row[key] not in there]:
        connection.execute(sa.insert(model), new)
    for row in rows:
        if row[key] in there:
            same = (model.trial_id == row["trial_id"], getattr(model, key) == row[key])
            rest = {name: value for name, value in row.items() if name not in ("trial_id", key)}
            connection.execute(sa.update(model).where(*same).values(rest))
