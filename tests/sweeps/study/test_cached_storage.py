"""The driver's view of its study: what the database holds, what Optuna would do with it."""

import hashlib
import math
import random
from collections.abc import Callable
from typing import Any

import optuna
import pytest
import sqlalchemy.event
import sqlalchemy.exc
from optuna.samplers._tpe.sampler import _split_trials
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from peft_jobs import Progress, State, TrialResult
from peft_jobs.spec.dotted import flatten
from sweeps.study import history
from sweeps.study.history import Considered
from sweeps.study.study import SweepStudy

Open = Callable[..., SweepStudy]
FEW = {"parameters": {"adapter.r": {"choices": [4, 8, 16]}, "seed": {"low": 1, "high": 6}}}


def recorded(study: SweepStudy) -> list[dict[str, Any]]:
    """The study's trials as Optuna reads them from the database, without their times."""
    fresh = optuna.load_study(study_name=study.spec.name, storage=study.storage)
    return plain(fresh.get_trials())


def plain(trials: Any) -> list[dict[str, Any]]:
    times = ("_datetime_start", "datetime_complete")
    return [{k: v for k, v in vars(trial).items() if k not in times} for trial in trials]


def run_some(study: SweepStudy, run: Any, count: int) -> None:
    """`count` trials, two at a time."""
    running = []
    for _ in range(count):
        running.append(study.ask())
        if len(running) == 2:
            run(study, running.pop(0))


@pytest.mark.parametrize("sampler", ["random", "tpe", "cmaes"])
def test_the_ledger_holds_what_the_database_holds(open_study: Open, run: Any, sampler: str) -> None:
    study = open_study(sampler=sampler, space=FEW)
    run_some(study, run, 14)
    states = {trial.state for trial in study.trials()}
    assert states == {TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING}
    assert "duplicate" in {trial.user_attrs.get("kind") for trial in study.trials()}
    assert plain(study.trials()) == recorded(study)
    assert plain(open_study(sampler=sampler, space=FEW).trials()) == recorded(study)


def test_a_trial_once_given_out_does_not_change(open_study: Open, run: Any) -> None:
    study = open_study()
    point = study.ask()
    assert point is not None
    before = study.trials()[0]
    run(study, point)
    assert before.state == TrialState.RUNNING
    assert "result" not in before.user_attrs
    assert study.trials()[0].state == TrialState.COMPLETE


def test_answers_of_the_database_that_are_lost_change_nothing(open_study: Open, run: Any) -> None:
    steady = open_study(name="steady")
    run_some(steady, run, 6)
    study = open_study(name="faltering")
    engine = study.storage.engine
    writes = lost = 0
    creates = False

    @sqlalchemy.event.listens_for(engine, "before_cursor_execute")
    def _look(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        nonlocal creates  # Optuna tries that again by itself, under another number
        creates = creates or statement.startswith("INSERT INTO trials ")

    @sqlalchemy.event.listens_for(engine, "commit")
    def _lose(connection: Any) -> None:
        nonlocal writes, lost, creates
        writes += not creates
        if not creates and writes % 3 == 0:
            lost += 1
            connection.connection.commit()
            raise sqlalchemy.exc.OperationalError("COMMIT", {}, Exception("no answer"))
        creates = False

    run_some(study, run, 6)
    assert lost > 5
    sqlalchemy.event.remove(engine, "commit", _lose)

    def but_when(trials: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for trial in trials:
            trial["_user_attrs"].pop("started_at")
            trial.pop("_trial_id")
        return trials

    assert plain(study.trials()) == recorded(study)
    assert but_when(recorded(study)) == but_when(recorded(steady))


def test_suggestions_are_those_of_optuna_with_a_study_of_its_own(
    open_study: Open, run: Any
) -> None:
    study = open_study(sampler="tpe", pruner="none", name="ours")
    theirs = optuna.create_study(direction="minimize")
    base = flatten(study.spec.trial)
    running: list[Any] = []
    for number in range(30):
        point = study.ask()
        assert point is not None
        seed = int.from_bytes(hashlib.sha256(f"1/{number}".encode()).digest()[:4], "big")
        theirs.sampler = optuna.samplers.TPESampler(seed=seed)
        trial = theirs.ask()
        assert study.spec.space.draw(trial, base) == point.params
        running.append((point, trial))
        if len(running) == 3:
            point, trial = running.pop(0)
            result = run(study, point)
            for rung, value in study.trials()[point.number].intermediate_values.items():
                trial.report(value, rung)
            theirs.tell(trial, result.metrics["validation/loss"])


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_successive_halving_lets_the_best_third_go_on(open_study: Open, direction: str) -> None:
    """Of those that have passed a rung so far, rounded up; Optuna's own rounds down."""
    halving = {"type": "successive_halving", "n_startup_trials": 0}
    study = open_study(sampler="random", pruner=halving, objective={"direction": direction})
    passed: dict[int, list[float]] = {100: [], 300: []}
    draw = random.Random(5)
    said = []
    running: list[Any] = []
    for _ in range(40):
        point = study.ask()
        assert point is not None
        running.append((point, list(point.spec.evaluation.rungs)))
        while len(running) > draw.randrange(6):
            point, rungs = running.pop(draw.randrange(len(running)))
            rung, value = rungs.pop(0), float(draw.randrange(8))
            metrics = {"validation/loss": value}
            progress = Progress(step=rung, samples=rung, tokens=1, metrics=metrics, rung=rung)
            passed[rung].append(value if direction == "minimize" else -value)
            best = sorted(passed[rung])[: math.ceil(len(passed[rung]) / 3)]
            go_on = passed[rung][-1] <= best[-1]
            assert study.report(point.number, progress) == go_on
            said.append(go_on)
            if go_on and rungs:
                running.append((point, rungs))
                continue
            state = State.COMPLETE if go_on else State.PRUNED
            kind = None if go_on else "weak"
            study.tell(point.number, TrialResult(state=state, kind=kind, metrics=metrics))
    assert 5 < sum(said) < len(said) - 5


def ended(number: int, draw: random.Random) -> FrozenTrial:
    state = draw.choice([TrialState.COMPLETE] + 30 * [TrialState.PRUNED] + [TrialState.FAIL])
    trial = optuna.trial.create_trial(
        state=state,
        value=draw.random() if state == TrialState.COMPLETE else None,
        intermediate_values={100 * draw.randint(1, 3): draw.random()},
        system_attrs={"constraints:memory": draw.choice([-1.0, -1.0, 0.5])},
    )
    trial.number = number
    return trial


@pytest.mark.parametrize("direction", [StudyDirection.MINIMIZE, StudyDirection.MAXIMIZE])
def test_a_large_study_is_considered_by_its_newest_and_best_trials(
    direction: StudyDirection,
) -> None:
    draw = random.Random(2)
    chooser = Considered(direction)
    trials: list[FrozenTrial] = []
    running = optuna.trial.create_trial(state=TrialState.RUNNING)
    for number in range(2500):
        running.number = 7
        trials.append(running if number == 7 else ended(number, draw))
        if number != 7:
            chooser.finished(trials[-1])
        if number == history.NEWEST // 2:
            assert chooser.of(trials, {7: running}) == trials
    chosen = chooser.of(trials, {7: running})
    learnt = [t for t in trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    study = optuna.create_study(direction=direction.name.lower())
    best, _ = _split_trials(study, learnt, history.BEST)
    newest = learnt[-history.NEWEST :]
    found = [t.number for t in chosen if t.state != TrialState.FAIL]
    assert found == sorted({t.number for t in best + newest} | {7})
    assert set(found) - {t.number for t in newest} > {7}
