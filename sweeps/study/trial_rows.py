"""TrialRows: Optuna's storage, which reads trials row by row instead of as objects of an ORM.

Of ten thousand trials these are some two hundred thousand objects, each of which SQLAlchemy keeps
track of while it is read.
"""

import json
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.storages._rdb.storage import _create_scoped_session
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import orm

MOST_IDS = 1000
"""That are asked for by name: databases limit the variables of a statement."""


class TrialRows(RDBStorage):
    """As Optuna's, and what it reads is equal."""

    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        known = [each for each in included_trial_ids if each <= trial_id_greater_than]
        if states is not None or len(known) > MOST_IDS:
            found: list[FrozenTrial] = super()._get_trials(
                study_id, states, included_trial_ids, trial_id_greater_than
            )
            return found
        trial = models.TrialModel
        asked = sa.or_(trial.trial_id > trial_id_greater_than, trial.trial_id.in_(known))
        with _create_scoped_session(self.scoped_session) as session:
            models.StudyModel.find_or_raise_by_id(study_id, session)
            return list(_trials(session, sa.and_(trial.study_id == study_id, asked)))


def _trials(session: orm.Session, asked: sa.ColumnElement[bool]) -> Iterator[FrozenTrial]:
    """Those that are asked for, in order of their ids."""
    trial, value = models.TrialModel, models.TrialValueModel
    step = models.TrialIntermediateValueModel
    params: defaultdict[int, list[tuple[str, float, BaseDistribution]]] = defaultdict(list)
    param = models.TrialParamModel
    drawn = (param.param_name, param.param_value, param.distribution_json)
    for trial_id, name, number, distribution in _rows(session, asked, param, drawn, param.param_id):
        params[trial_id].append((name, number, _distribution(distribution)))
    values: defaultdict[int, dict[int, float]] = defaultdict(dict)
    told = (value.objective, value.value, value.value_type)
    for trial_id, objective, number, kind in _rows(session, asked, value, told):
        values[trial_id][objective] = value.stored_repr_to_value(number, kind)
    steps: defaultdict[int, dict[int, float]] = defaultdict(dict)
    told = (step.step, step.intermediate_value, step.intermediate_value_type)
    for trial_id, at, number, kind in _rows(session, asked, step, told):
        steps[trial_id][at] = step.stored_repr_to_intermediate_value(number, kind)
    user_attrs = _attributes(session, asked, models.TrialUserAttributeModel)
    system_attrs = _attributes(session, asked, models.TrialSystemAttributeModel)
    columns = (trial.trial_id, trial.number, trial.state)
    times = (trial._datetime_start_utc, trial._datetime_complete_utc)
    found = session.execute(sa.select(*columns, *times).where(asked).order_by(trial.trial_id))
    for trial_id, number, state, start, complete in found.all():
        reached = values.get(trial_id)
        yield FrozenTrial(
            number=number,
            state=state,
            value=None,
            values=None if reached is None else [reached[place] for place in sorted(reached)],
            datetime_start=_local(start),
            datetime_complete=_local(complete),
            params={name: d.to_external_repr(v) for name, v, d in params[trial_id]},
            distributions={name: d for name, _, d in params[trial_id]},
            user_attrs=user_attrs[trial_id],
            system_attrs=system_attrs[trial_id],
            intermediate_values=steps[trial_id],
            trial_id=trial_id,
        )


def _rows(
    session: orm.Session,
    asked: sa.ColumnElement[bool],
    table: Any,
    columns: Sequence[Any],
    order: Any = None,
) -> Iterable[Any]:
    """Of a table with a trial's id: that, and the columns."""
    query = sa.select(table.trial_id, *columns).join(
        models.TrialModel, models.TrialModel.trial_id == table.trial_id
    )
    return session.execute(query.where(asked).order_by(order))


def _attributes(
    session: orm.Session, asked: sa.ColumnElement[bool], table: Any
) -> defaultdict[int, dict[str, Any]]:
    found: defaultdict[int, dict[str, Any]] = defaultdict(dict)
    for trial_id, key, value in _rows(session, asked, table, (table.key, table.value_json)):
        found[trial_id][key] = json.loads(value)
    return found


@lru_cache(maxsize=1024)
def _distribution(text: str) -> BaseDistribution:
    """Nobody changes one."""
    return json_to_distribution(text)


def _local(utc: datetime | None) -> datetime | None:
    """As Optuna gives times: naive, of this machine's zone."""
    return None if utc is None else utc.replace(tzinfo=UTC).astimezone().replace(tzinfo=None)
