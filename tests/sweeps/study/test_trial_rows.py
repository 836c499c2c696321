"""What is read row by row is what Optuna reads, and takes a few statements however many trials."""

import math
from pathlib import Path

import optuna
import pytest
import sqlalchemy as sa
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import RDBStorage
from optuna.trial import TrialState, create_trial

from sweeps.study.trial_rows import MOST_IDS, TrialRows


@pytest.fixture
def url(tmp_path: Path) -> str:
    """Studies with trials of all states, and values that no JSON has; two, one between the other's
    trials."""
    url = f"sqlite:///{tmp_path / 'optuna.db'}"
    studies = [optuna.create_study(storage=url, study_name=name) for name in ("first", "second")]
    spaces = {
        "rate": FloatDistribution(1e-5, 1e-2, log=True),
        "r": IntDistribution(4, 64, step=4),
        "targets": CategoricalDistribution(("attention", None, True)),
    }
    for turn in range(8):
        study = studies[turn % 2]
        study.add_trial(
            create_trial(
                value=[0.5, math.inf, -math.inf, 1e-300][turn // 2],
                params={"rate": 1e-3, "r": 4 * turn + 4, "targets": (None, True)[turn % 2]},
                distributions=spaces,
                user_attrs={"result": {"state": "complete", "metrics": {"loss": turn}}, "é": []},
                system_attrs={"at": turn},
                intermediate_values={3: math.nan, 1: math.inf, 2: 0.25},
            )
        )
    studies[0].enqueue_trial({"r": 8})
    running = studies[0].ask()
    running.suggest_float("rate", 1e-5, 1e-2, log=True)
    running.report(1.5, 3)
    studies[0].tell(studies[0].ask(), state=TrialState.PRUNED)
    studies[0].tell(studies[0].ask(), state=TrialState.FAIL)
    studies[0].enqueue_trial({"r": 12})
    return url


@pytest.mark.parametrize("name", ["first", "second"])
def test_trials_are_read_as_optuna_reads_them(url: str, name: str) -> None:
    ours, theirs = TrialRows(url), RDBStorage(url)
    study = theirs.get_study_id_from_name(name)
    everything = theirs.get_all_trials(study)
    assert {trial.state for trial in everything} >= {TrialState.COMPLETE}
    ids = [trial._trial_id for trial in everything]
    asked: list[tuple[set[int], int]] = [(set(), -1), (set(ids[:2]), ids[2]), (set(ids), ids[-1])]
    asked += [(set(), ids[-1]), ({ids[1], 10_000}, ids[1])]
    for included, greater in asked:
        found = ours._get_trials(study, None, included, greater)
        # repr: one that is not a number is not equal to itself
        assert repr(found) == repr(theirs._get_trials(study, None, included, greater))
    assert repr(ours.get_all_trials(study)) == repr(everything)
    states = (TrialState.WAITING, TrialState.RUNNING)
    assert ours.get_all_trials(study, states=states) == theirs.get_all_trials(study, states=states)


def test_a_few_statements_read_any_number_of_trials(url: str) -> None:
    ours = TrialRows(url)
    study = ours.get_study_id_from_name("first")
    said: list[str] = []
    sa.event.listen(ours.engine, "before_cursor_execute", lambda *each: said.append(each[2]))
    ours._get_trials(study, None, set(range(MOST_IDS)), MOST_IDS)
    assert len(said) <= 8


def test_a_study_that_is_not_there_is_optuna_s_error(url: str) -> None:
    with pytest.raises(KeyError):
        TrialRows(url)._get_trials(99, None, set(), -1)
