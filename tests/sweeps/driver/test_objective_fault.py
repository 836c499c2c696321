"""A trial that cannot be compared is a result, whatever it tells and wherever it is seen."""

from collections.abc import Callable
from typing import Any

import pytest

from peft_jobs import Kind, State, TrialResult
from sweeps import SweepSpec
from sweeps.driver.driver import NOTE_SECONDS, Driver
from sweeps.driver.objective_fault import fault_of
from sweeps.records.layout import SweepFolder
from sweeps.run import launch
from sweeps.spec.sweep import ObjectiveSpec
from sweeps.study.study import SweepStudy
from sweeps.tracking import NoTracker

Sweep = Callable[..., SweepSpec]


@pytest.mark.parametrize("budget", [{}, {"num_rungs": 0}])  # seen at a rung, and at the end
@pytest.mark.parametrize(
    ("fault", "state", "kind", "told"),
    [
        ("unmeasured", "FAIL", Kind.DATA, "did not give the objective validation/loss; it gave no"),
        ("undefined", "PRUNED", Kind.DIVERGED, "the objective validation/loss is no finite number"),
    ],
)
def test_a_trial_without_the_objective_ends_alone(
    sweep: Sweep, budget: dict[str, Any], fault: str, state: str, kind: Kind, told: str
) -> None:
    options = {"faults": {2: fault, 3: fault}}
    spec = sweep(budget=budget, pruner="none", resources={"engine_options": options})
    outcome = launch(spec)
    assert outcome.status == "complete"
    rows = {row.number: row for row in outcome.leaderboard.rows}
    assert len(rows) == 12
    for number in (2, 3):
        assert (rows[number].state, rows[number].kind) == (state, kind)
        assert told in str(rows[number].error)
    assert all(row.state == State.COMPLETE for n, row in rows.items() if n not in (2, 3))


def test_failures_without_the_objective_are_counted(sweep: Sweep) -> None:
    options = {"faults": dict.fromkeys(range(12), "unmeasured")}
    spec = sweep(budget={"max_failures": 2}, resources={"engine_options": options})
    outcome = launch(spec)
    assert (outcome.status, outcome.reason) == ("failed", "more than 2 trials failed")
    assert len(outcome.leaderboard.rows) == 3


def test_other_metrics_may_be_undefined_but_not_a_constraint(
    open_study: Callable[..., SweepStudy],
) -> None:
    result = TrialResult(
        state=State.COMPLETE,
        metrics={"validation/loss": 1.0},
        not_finite=("validation/perplexity",),
    )
    assert fault_of(ObjectiveSpec(), result) is None
    assert open_study().feasible(result)
    bounded = open_study(name="bounded", constraints={"validation/perplexity": 5.0})
    assert not bounded.feasible(result)


def test_a_trial_that_runs_for_too_long_is_stopped_and_the_sampler_learns_from_it(
    sweep: Sweep,
) -> None:
    options = {"step_seconds": 0.02}
    budget = {"n_trials": 2, "trial_timeout": 0.3, "max_samples": 10**6, "num_rungs": 0}
    outcome = launch(sweep(budget=budget, resources={"engine_options": options}))
    assert outcome.status == "failed", "nothing completed"
    for row in outcome.leaderboard.rows:
        assert (row.state, row.kind) == ("PRUNED", "timeout")
        assert row.error == "it ran for longer than budget.trial_timeout = 0.3 s"


def test_the_timeout_counts_over_launches(open_study: Callable[..., SweepStudy]) -> None:
    budget, now = {"n_trials": 1000, "timeout": 100.0}, [5.0]

    def driver(**changed: float) -> Driver:
        study = open_study(budget={**budget, **changed})
        folder = SweepFolder.of(study.spec)
        return Driver(study.spec, study, NoTracker(), folder, clock=lambda: now[0])

    first = driver()
    assert first.ask() is not None
    now[0] += 2 * NOTE_SECONDS
    first.tick()  # and it is killed
    second = driver()
    assert second.study.spent[0] == 2 * NOTE_SECONDS
    now[0] += 100.0 - 2 * NOTE_SECONDS
    assert second.ask() is not None, "the one that was interrupted"
    now[0] += 1.0
    assert second.ask() is None
    assert second.budget.stop_reason == "the timeout of 100 seconds is over"
    second.note_time()
    assert driver().ask() is None
    assert driver(timeout=1000.0).ask() is not None


@pytest.mark.parametrize(
    "limit", [{"gpu_hours": 2.0}, {"usd": 5.0, "usd_per_gpu_hour": 2.5}], ids=["hours", "price"]
)
def test_hours_of_all_gpus_count_over_launches_and_end_the_sweep(
    open_study: Callable[..., SweepStudy], limit: dict[str, float]
) -> None:
    now, held = [5.0], [4]

    def driver(**changed: float) -> Driver:
        study = open_study(budget={"n_trials": 1000, **limit, **changed})
        made = Driver(
            study.spec, study, NoTracker(), SweepFolder.of(study.spec), clock=lambda: now[0]
        )
        made.budget.num_gpus = lambda: held[0]
        return made

    first = driver()
    assert first.ask() is not None
    now[0] += 1200.0
    first.tick()  # and it is killed
    second = driver()
    assert second.study.spent == (1200.0, 4 * 1200.0)
    held[0] = 1
    now[0] += 2400.0
    second.tick()
    assert second.ask() is not None, "exactly two GPU-hours are held now"
    now[0] += 1.0
    second.tick()
    assert second.ask() is None
    assert second.budget.stop_reason == "the budget of 2 GPU-hours is spent"
    second.note_time()
    assert driver().ask() is None
    assert driver(gpu_hours=3.0, usd=100.0, usd_per_gpu_hour=1.0).ask() is not None
