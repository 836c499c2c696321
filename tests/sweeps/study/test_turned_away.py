"""Points that are turned away: a space ends truly, and what ends it is said as it is."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from peft_jobs import Kind
from search_spaces import FunctionSpace
from sweeps import SweepSpec
from sweeps.errors import StudyGone
from sweeps.run import launch
from sweeps.study.study import SweepStudy
from sweeps.study.turned_away import NOT_LAUNCHED

Open = Callable[..., SweepStudy]
SPARSE = {
    "parameters": {
        "adapter.r": {"type": "int", "low": 1, "high": 30},
        "adapter.lora_alpha": {"type": "int", "low": 1, "high": 30},
    },
    "constraints": ["adapter.lora_alpha == adapter.r"],
}
"""30 valid points of 900."""
WALL = {
    "parameters": {
        "adapter.r": {"choices": [4, 8]},
        "training.learning_rate": {"low": 0.001, "high": 0.002, "log": True},
    },
    "constraints": ["training.learning_rate < 0.00101"],
}
"""A continuous space of which one point in 69 is valid."""


def run_all(study: SweepStudy, run: Any) -> list[dict[str, Any]]:
    asked = []
    while (point := study.ask()) is not None:
        asked.append(point.params)
        run(study, point)
    return asked


@pytest.mark.parametrize("seed", [1, 2])
def test_a_grid_runs_all_its_valid_points(open_study: Open, run: Any, seed: int) -> None:
    study = open_study(space=SPARSE, sampler="grid", pruner="none", seed=seed)
    ranks = [params["adapter.r"] for params in run_all(study, run)]
    assert sorted(ranks) == list(range(1, 31))
    assert len(study.trials()) == 30, "points that are none to launch cost no trial"
    assert study.exhausted == (
        "the space is exhausted: 870 points were turned away (870 by adapter.lora_alpha == "
        "adapter.r)"
    )


def test_what_a_sampler_does_not_find_of_a_finite_space_is_listed(
    open_study: Open, run: Any
) -> None:
    sparse = {**SPARSE, "parameters": {n: {"low": 1, "high": 16} for n in SPARSE["parameters"]}}
    study = open_study(space=sparse, sampler="random", pruner="none")
    asked = run_all(study, run)
    assert sorted(params["adapter.r"] for params in asked) == list(range(1, 17))
    assert study.exhausted.startswith("the space is exhausted")


def test_a_listed_space_is_resumed_as_if_unbroken(open_study: Open, run: Any) -> None:
    unbroken = run_all(open_study(name="unbroken", space=SPARSE, sampler="grid"), run)
    broken = []
    for _ in range(6):
        study = open_study(name="broken", space=SPARSE, sampler="grid")
        for _ in range(5):
            point = study.ask()
            assert point is not None
            broken.append(point.params)
            run(study, point)
    assert broken == unbroken
    assert open_study(name="broken", space=SPARSE, sampler="grid").ask() is None


def test_a_continuous_space_is_never_called_exhausted(sweep: Callable[..., SweepSpec]) -> None:
    outcome = launch(sweep(space=WALL, sampler="random", budget={"n_trials": 100}))
    assert outcome.status == "complete"
    assert outcome.leaderboard.rows
    assert outcome.reason is not None
    assert "exhausted" not in outcome.reason
    assert outcome.reason.startswith(
        "200 points were turned away (200 by training.learning_rate < 0.00101) in a row"
    )


def test_a_sweep_in_which_nothing_could_run_has_failed(
    sweep: Callable[..., SweepSpec], open_study: Open
) -> None:
    wall = {**WALL, "constraints": ["training.learning_rate < 0.0010001"]}  # one point in 6,900
    outcome = launch(sweep(space=wall, sampler="random"))
    assert outcome.status == "failed"
    assert not outcome.leaderboard.rows
    assert outcome.reason is not None
    assert outcome.reason.startswith("200 points were turned away (200 by")


QUEUED = [
    ({"adapter.r": 5}, "adapter.r must be one of 4, 8, 16, 32, got 5"),
    ({"training.learning_rate": 7.0}, "training.learning_rate must be float 0.0001 to 0.01, log"),
    ({"training.learning_rate": "fast"}, "training.learning_rate must be float 0.0001"),
    ({"adapter.rank": 8}, "unknown parameter 'adapter.rank'"),
    ({"adapter.lora_alpha": 16}, "adapter.lora_alpha is not sampled: leave it out"),
]


@pytest.mark.parametrize(("given", "told"), QUEUED)
def test_a_point_queued_from_outside_is_turned_away_if_it_is_none_of_the_space(
    open_study: Open, run: Any, tmp_path: Path, given: dict[str, Any], told: str
) -> None:
    study = open_study(sampler="tpe")
    point = study.ask()
    assert point is not None
    run(study, point)
    url = f"sqlite:///{tmp_path / 'runs' / 'optuna.db'}"
    optuna.load_study(study_name="simulated", storage=url).enqueue_trial(given)
    study = open_study(sampler="tpe")  # as the driver of the next launch
    assert None not in [study.ask() for _ in range(3)]
    refused = study.trials()[1]
    assert refused.user_attrs["kind"] == Kind.REJECTED
    assert told in refused.user_attrs["reason"]
    assert refused.state == TrialState.FAIL, "samplers must not see a trial without parameters"
    assert refused.number not in [trial.number for trial in study.launched()]


def test_a_queued_value_without_a_place_at_its_point_is_turned_away(open_study: Open) -> None:
    space = {
        "parameters": {
            "adapter.r": {"choices": [4, 8]},
            "training.warmup_steps": {"low": 1, "high": 9, "when": "adapter.r > 4"},
        }
    }
    study = open_study(space=space)
    study.optuna.enqueue_trial({"adapter.r": 4, "training.warmup_steps": 3})
    assert study.ask() is not None
    assert (
        study.trials()[0].user_attrs["reason"] == "training.warmup_steps has no value here, got 3"
    )


def test_an_error_of_a_function_turns_its_point_away(
    open_study: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_space.py").write_text(
        "def draw(trial):\n"
        "    r = trial.suggest_categorical('r', [4, 8])\n"
        "    rate = trial.suggest_float('rate', 1e-4, 1e-2)\n"
        "    broken = 1 / 0 if rate > 9e-3 and MEAN else 0\n"
        "    return {'adapter.r': r, 'training.learning_rate': rate}\n"
        "MEAN = False\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    study = open_study(space=FunctionSpace(function="my_space:draw"), pruner="none")
    import my_space  # type: ignore[import-not-found]

    monkeypatch.setattr(my_space, "MEAN", True)
    points = [study.ask() for _ in range(30)]
    assert all(point is not None for point in points)
    refused = [t for t in study.trials() if t.user_attrs.get("kind") in NOT_LAUNCHED]
    assert refused
    assert {t.user_attrs["reason"] for t in refused} == {"ZeroDivisionError: division by zero"}


def test_a_study_that_is_deleted_while_it_runs_is_one_clear_error(
    open_study: Open, run: Any, tmp_path: Path
) -> None:
    study = open_study()
    first, second = study.ask(), study.ask()
    assert first is not None
    assert second is not None
    run(study, first)
    url = f"sqlite:///{tmp_path / 'runs' / 'optuna.db'}"
    optuna.delete_study(study_name="simulated", storage=url)
    with pytest.raises(StudyGone, match="was deleted from its database"):
        study.ask()
    with pytest.raises(StudyGone):
        run(study, second)
