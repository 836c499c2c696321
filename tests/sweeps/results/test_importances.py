"""Importances: nothing is said of noise, what matters is found, and others agree."""

from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState, create_trial
from sklearn.ensemble import RandomForestRegressor
from sklearn.inspection import permutation_importance
from sklearn.linear_model import LinearRegression

from sweeps.results.importances import Importances, importances, in_order

SPACE: dict[str, Any] = {
    "rate": FloatDistribution(1e-4, 1e-2, log=True),
    "rank": CategoricalDistribution([4, 8, 16, 32]),
    "targets": CategoricalDistribution(["qv", "attention", "all"]),
    "dropout": FloatDistribution(0.0, 0.1),
}
MATTERS: dict[str, Callable[[dict[str, Any]], float]] = {
    "rate": lambda params: (np.log(params["rate"]) - np.log(1e-3)) ** 2 / 2,
    "rank": lambda params: np.log2(params["rank"]),
    "targets": lambda params: {"qv": 2.0, "attention": 1.0, "all": 0.0}[params["targets"]],
}


def trial(
    number: int,
    params: dict[str, Any],
    value: float | None,
    kind: str | None = None,
    rungs: dict[int, float] | None = None,
) -> FrozenTrial:
    made = create_trial(
        params=params,
        distributions={name: SPACE[name] for name in params},
        value=value,
        state=TrialState.COMPLETE if value is not None else TrialState.PRUNED,
        intermediate_values=rungs or {},
        user_attrs={"kind": kind},
    )
    made.number = number
    return made


def drawn(
    rng: np.random.Generator,
    number: int,
    loss: Callable[[dict[str, Any]], float],
    noise: float,
    halved: bool = False,
) -> list[FrozenTrial]:
    """Random trials; if `halved`, those behind the first third at a noisy rung end there."""
    trials, seen = [], list[float]()
    for place in range(number):
        params = {
            "rate": float(np.exp(rng.uniform(np.log(1e-4), np.log(1e-2)))),
            "rank": int(rng.choice([4, 8, 16, 32])),
            "targets": str(rng.choice(["qv", "attention", "all"])),
            "dropout": float(rng.uniform(0, 0.1)),
        }
        value = loss(params) + rng.normal(0, noise)
        seen.append(value + rng.normal(0, 0.3))
        weak = halved and place >= 4 and sorted(seen).index(seen[-1]) >= len(seen) // 3
        known = (None, "weak") if weak else (value, None)
        trials.append(trial(place, params, *known, {100: seen[-1]}))
    return trials


@pytest.mark.parametrize("halved", [False, True], ids=["complete", "pruned"])
def test_of_noise_nothing_is_said(halved: bool) -> None:
    """In at most one study of twenty; 60 studies, so at most 6 (binomial, 99 %)."""
    rng = np.random.default_rng(1)
    studies = [drawn(rng, 16, lambda _: 0.0, 1.0, halved) for _ in range(60)]
    found = [importances(study, "minimize") for study in studies]
    assert sum(each.says_something for each in found) <= 6
    silent = [each for each in found if not each.says_something]
    assert {row.says for each in silent for row in each.rows} == {None}


@pytest.mark.parametrize("name", MATTERS)
def test_the_only_parameter_that_matters_is_found(name: str) -> None:
    """In 95 % of studies of twenty trials; of 20 here at least 17 (binomial, 98 %)."""
    rng = np.random.default_rng(2)
    studies = [drawn(rng, 20, MATTERS[name], 0.5) for _ in range(20)]
    found = [importances(study, "minimize").rows[0] for study in studies]
    assert sum((row.name, row.says) == (name, "matters") for row in found) >= 17


def test_many_trials_say_what_does_not_matter() -> None:
    found = importances(drawn(np.random.default_rng(3), 60, MATTERS["rank"], 0.5), "minimize")
    assert {row.name: row.says for row in found.rows} == {
        "rank": "matters",
        **dict.fromkeys(("rate", "targets", "dropout"), "little"),
    }
    first = found.rows[0]
    assert 0.5 < first.low < first.share < first.high < 1.0


def test_a_share_is_the_adjusted_r_squared_of_scikit_learn() -> None:
    study = drawn(np.random.default_rng(4), 20, MATTERS["rate"], 0.5)
    places = {each.number: place for place, each in enumerate(in_order(study, "minimize"))}
    target = np.array([places[each.number] for each in study])
    rate = np.log([each.params["rate"] for each in study])
    score = LinearRegression().fit(columns := np.stack([rate, rate**2], 1), target)
    expected = 1 - (1 - score.score(columns, target)) * 19 / 17
    (row,) = (r for r in importances(study, "minimize").rows if r.name == "rate")
    assert row.share == pytest.approx(expected)


def test_others_put_the_same_parameter_first_where_trials_are_many() -> None:
    """Optuna's fANOVA, and scikit-learn's permutation importance of a forest."""
    study = drawn(np.random.default_rng(5), 60, MATTERS["targets"], 0.3)
    own = [row.name for row in importances(study, "minimize").rows]
    optunas = optuna.create_study()
    optunas.add_trials(study)
    fanova = get_param_importances(optunas, evaluator=FanovaImportanceEvaluator(n_trees=8, seed=0))
    codes = {"qv": 0, "attention": 1, "all": 2}
    columns = [
        [np.log(t.params["rate"]), t.params["rank"], codes[t.params["targets"]]] for t in study
    ]
    values = [t.value for t in study]
    forest = RandomForestRegressor(20, random_state=0).fit(columns, values)
    shuffled = permutation_importance(forest, columns, values, random_state=0)
    assert own[0] == next(iter(fanova)) == "targets"
    assert int(np.argmax(shuffled.importances_mean)) == 2


def test_stopped_and_diverged_trials_have_their_place() -> None:
    point = {"rank": 4}
    trials = [
        trial(0, point, None, "weak", {100: 1.0}),
        trial(1, point, 5.0),
        trial(2, point, None, "weak", {100: 0.5, 300: 9.0}),
        trial(3, point, None, "diverged"),
        trial(4, point, 4.0),
        trial(5, point, None, "out_of_memory", {100: 0.1}),
        trial(6, point, None, "weak", {100: 0.9}),
    ]
    assert [each.number for each in in_order(trials, "minimize")] == [4, 1, 2, 6, 0, 3]
    assert [each.number for each in in_order(trials, "maximize")] == [1, 4, 2, 0, 6, 3]
    assert importances(trials, "minimize") == Importances((), 6, 2), "too few"


def test_a_conditional_parameter_is_judged_where_it_is() -> None:
    """The trials without it are far better; among those with it, it decides nothing."""
    rng = np.random.default_rng(6)
    trials = []
    for number in range(40):
        params: dict[str, Any] = {"targets": ("qv", "all")[number % 2]}
        if number % 2:
            params["dropout"] = float(rng.uniform(0, 0.1))
        trials.append(trial(number, params, number % 2 * 10 + rng.normal()))
    rows = {row.name: row for row in importances(trials, "minimize").rows}
    assert (rows["targets"].says, rows["targets"].num_trials) == ("matters", 40)
    assert (rows["dropout"].says != "matters", rows["dropout"].num_trials) == (True, 20)
