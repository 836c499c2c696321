"""The verdict: what a sweep says, before and after a confirmation, finished or not."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from peft_jobs import Kind, State, TrialResult
from peft_jobs.storage.files import write_json
from sweeps import SweepSpec, open_sweep
from sweeps.confirmation.seeds import Interval
from sweeps.records.layout import SweepFolder
from sweeps.results.importances import Importance, Importances
from sweeps.results.ranking import make_leaderboard
from sweeps.results.verdict import Verdict, verdict_of
from sweeps.results.verdict.sentences import mattered
from sweeps.run import launch
from sweeps.study.study import SweepStudy

Open = Callable[..., SweepStudy]
SEEN = {"model": "m", "data": "d", "template": "t", "device": "cpu"}


def end(study: SweepStudy, loss: float | None, kind: Kind | None = None, **seen: Any) -> int:
    point = study.ask()
    assert point is not None
    metrics = {} if loss is None else {study.spec.objective.metric: loss}
    known = {"samples": 900, "provenance": SEEN, "metrics": metrics, **seen}
    state = State.COMPLETE if kind is None else kind.state
    study.tell(point.number, TrialResult(state=state, kind=kind, **known))
    return point.number


def said(study: SweepStudy, **changed: Any) -> Verdict:
    board = replace(make_leaderboard(study), **changed)
    return verdict_of(board, study, SweepFolder.of(study.spec))


def test_of_a_sweep_without_a_complete_trial_only_its_cost_is_said(open_study: Open) -> None:
    study = open_study()
    empty = said(study)
    assert (empty.chosen, empty.bounds, empty.comparisons, empty.steps) == (None, (), (), ())
    assert empty.sentences() == ["No trial has completed yet.", "0 trials: 0 ran to the end."]
    number = end(study, None, Kind.BUG, error="broke")
    assert said(study).steps[0].command == (
        f"peft-sweep show simulated {number} --storage {study.spec.storage}"
    )


def test_what_was_spent_and_saved_by_hand(open_study: Open) -> None:
    """Two of 900 samples, weak ones after 100 and 300: 1 - 2200 / 3600 are saved."""
    study = open_study()
    for loss in (2.0, 1.0):
        end(study, loss)
    for samples in (100, 300):
        end(study, None, Kind.WEAK, samples=samples)
    end(study, None, Kind.OUT_OF_MEMORY, samples=50)
    study.note_spent((3600.0, 2880.0))
    spent = said(study).spent
    assert spent.share_saved == pytest.approx(1 - 2200 / 3600)
    assert (spent.num_trials, spent.num_complete, spent.num_pruned, spent.num_failed) == (
        *(5, 2),
        *(2, 1),
    )
    assert (spent.hours, spent.gpu_hours) == (1.0, None), "no trial ran on a GPU"
    assert said(study).sentences(with_steps=False)[-1] == (
        "5 trials in 1.0 hours: 2 ran to the end, 2 were pruned; pruning saved 39 % of their "
        "samples, 1 ended otherwise."
    )
    end(study, 3.0, provenance={**SEEN, "device": "NVIDIA L4"})
    words = said(study).sentences(with_steps=False)[-1]
    assert words.startswith("6 trials in 0.8 GPU-hours: 3 ran")


def test_a_single_run_is_told_as_one(open_study: Open) -> None:
    study = open_study()
    study.optuna.set_user_attr("baseline", {"validation/loss": 4.0})
    study.optuna.set_user_attr("majority", {"validation/loss": 0.5})
    memory = {"peak_rss_bytes": 3 * 2**30}
    best = end(study, 1.0, trainable_parameters=7000, memory=memory, seconds={"train": 90.0})
    other = end(study, 1.5)
    verdict = said(study)
    assert verdict.chosen is not None
    assert (verdict.chosen.number, verdict.chosen.recorded) == (best, 1.0)
    assert (verdict.chosen.expected, verdict.chosen.num_seeds) == (None, 0)
    assert [(c.value, c.better_by, c.is_sure) for c in verdict.comparisons] == [
        (4.0, 3.0, False),
        (0.5, -0.5, False),
    ]
    words = verdict.sentences()
    assert "It trains 7,000 parameters, and took 1.5 minutes and 3.00 GiB of memory." in words
    assert "It is better than the base without adapter (4.0000) by 3.0000, with one seed." in words
    assert "It is no better than the mean of the training rows (0.5000)." in words
    assert [step.command and step.command.split()[1] for step in verdict.steps] == [
        *(None, None),
        *("confirm", "export", "train"),
    ]
    rows = make_leaderboard(study).rows
    apart = replace(rows[1], interval=(0.2, 0.9))
    (*_, told) = said(study, rows=(rows[0], apart)).comparisons
    assert (told.number, told.better_by, told.low, told.high) == (other, 0.5, 0.2, 0.9)
    assert told.is_sure
    assert told.basis == "rows"
    assert said(study, rows=(rows[0], replace(rows[1], interval=(-0.1, 0.9)))).tied == (other,)


def test_the_test_rows_are_told_of_the_chosen_trial_alone(open_study: Open) -> None:
    study = open_study()
    best, other = end(study, 1.0), end(study, 1.5)
    exports = SweepFolder.of(study.spec).exports
    for number, loss in ((best, 1.25), (other, 9.0)):
        assert said(study).chosen.test is None  # type: ignore[union-attr]
        record = {"trial": number, "test": {"test/loss": loss}}
        record["test_intervals"] = {"test/loss": [loss - 0.25, loss + 0.25]}
        (exports / f"trial-{number:04d}").mkdir(parents=True)
        write_json(exports / f"trial-{number:04d}" / "export.json", record)
        if number == best:
            verdict = said(study)
            assert verdict.chosen is not None
            assert verdict.chosen.test == Interval(1.25, 1.0, 1.5)
            assert (
                "On the test rows, read once, its adapter has 1.2500 (1.0000 to 1.5000 on other "
                "rows of this kind)."
            ) in verdict.sentences()
            (exports / f"trial-{number:04d}" / "export.json").unlink()
    assert said(study).chosen.test is None  # type: ignore[union-attr]


def test_what_is_given_is_what_is_beaten(open_study: Open) -> None:
    """The metric is to be large here: intervals turn round."""
    given = {"adapter.r": 8, "training.learning_rate": 1e-3, "adapter.target_modules": "all-linear"}
    study = open_study(
        objective={"metric": "validation/perplexity", "direction": "maximize"},
        space={"parameters": SPACE, "points_to_evaluate": [given]},
    )
    today, best = end(study, 0.5), end(study, 0.75)
    first, second = make_leaderboard(study).rows
    assert (first.number, second.number) == (best, today)
    (told,) = said(study, rows=(first, replace(second, interval=(-0.3, -0.125)))).comparisons
    assert told.other == f"trial {today:04d}, which was given"
    assert (told.better_by, told.low, told.high) == (0.25, 0.125, 0.3)


SPACE = {
    "adapter.r": {"choices": [1, 2, 4, 8]},
    "adapter.lora_dropout": {"low": 0.0, "high": 0.5},
    "adapter.target_modules": {"choices": ["attention-qv", "all-linear"]},
    "training.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
}


@pytest.mark.parametrize(
    ("point", "bounds"),
    [
        ({"adapter.r": 8}, [("adapter.r", "upper", 8.0)]),
        ({"adapter.r": 1}, []),  # no rank below
        ({"adapter.r": 4}, []),
        ({"adapter.lora_dropout": 0.0}, []),  # none below
        ({"adapter.lora_dropout": 0.49}, [("adapter.lora_dropout", "upper", 0.5)]),
        ({"training.learning_rate": 1.1e-4}, [("training.learning_rate", "lower", 1e-4)]),
        ({"training.learning_rate": 6e-3}, []),  # within a tenth of the range, not of the scale
    ],
)
def test_bounds_are_told_where_something_lies_beyond(
    open_study: Open, point: dict[str, Any], bounds: list[Any]
) -> None:
    middle = {"adapter.r": 4, "adapter.lora_dropout": 0.2, "training.learning_rate": 1e-3}
    given = {**middle, "adapter.target_modules": "all-linear", **point}
    study = open_study(
        space={"parameters": SPACE, "points_to_evaluate": [given]}, sampler="random", seed=5
    )
    end(study, 1.0)
    end(study, 2.0)
    verdict = said(study)
    assert [(b.name, b.side, b.bound) for b in verdict.bounds] == bounds
    told = [words for words in verdict.sentences() if words.endswith("widen it.")]
    assert len(told) == len(bounds)
    if point == {"adapter.r": 8}:
        assert told == ["adapter.r is at its upper bound 8: widen it."]
        rows = make_leaderboard(study).rows
        tied = replace(rows[1], interval=(-1.0, 3.0))
        assert study.trials()[1].params["adapter.r"] != 8
        unsure = said(study, rows=(rows[0], tied))
        assert not unsure.bounds[0].is_shared
        assert any("what lies beyond may be no better" in words for words in unsure.sentences())


def test_a_bound_holds_before_the_factor(open_study: Open) -> None:
    """With `times`, what is sampled is what touches; the value that is told is the trial's."""
    rate = {"low": 1e-4, "high": 1e-2, "log": True, "times": "0.5"}
    study = open_study(
        space={
            "parameters": {**SPACE, "training.learning_rate": rate},
            "points_to_evaluate": [
                {"training.learning_rate": 1e-2, "adapter.r": 4, "adapter.lora_dropout": 0.2}
            ],
        }
    )
    end(study, 1.0)
    (bound,) = said(study).bounds
    assert (bound.name, bound.value, bound.bound) == ("training.learning_rate", 5e-3, 1e-2)


def test_a_confirmed_sweep_is_told_over_seeds_everywhere_the_same(
    sweep: Callable[..., SweepSpec],
) -> None:
    few = {"seeds": 3, "candidates": 4, "max_trials": 12}
    spec = sweep(pruner="none", confirm=few)
    outcome = launch(spec)
    verdict, found = outcome.verdict, outcome.leaderboard.confirmation
    assert found is not None
    assert verdict.chosen is not None
    assert verdict.chosen.number == found.recommended
    assert verdict.chosen.expected == found.winner.expected
    base = verdict.comparisons[0]
    assert base.basis == "seeds"
    assert (base.value, base.is_sure) == (4.0, True)
    assert base.low == pytest.approx(4.0 - found.winner.expected.high)
    assert verdict.headline.startswith(
        f"Train the configuration of trial {found.recommended:04d}: expected"
    )
    assert open_sweep(spec.storage, spec.name).verdict() == verdict
    record = json.loads((SweepFolder.of(spec).path / "leaderboard.json").read_text())
    assert record["verdict"]["sentences"] == verdict.sentences()
    assert verdict.headline in (SweepFolder.of(spec).path / "leaderboard.html").read_text()
    assert verdict.status == "ended"
    steps = [step.command.split()[1] for step in verdict.steps if step.command]
    assert steps == ["export", "train"]


def test_what_mattered_is_told_as_far_as_it_is_known() -> None:
    rows = (
        Importance("adapter.r", 0.61, 0.4, 0.75, 0.001, 20, "matters"),
        Importance("adapter.lora_alpha", 0.02, 0.0, 0.24, 0.6, 20, "little"),
        Importance("training.learning_rate", 0.1, 0.0, 0.5, 0.07, 20, None),
    )
    assert [*mattered(Importances(rows, 20, 12))] == [
        "What mattered, of the order of 20 trials: adapter.r 61 % (40 % to 75 %).",
        "What did not matter: adapter.lora_alpha (at most 24 %).",
        "Nothing can be said yet of training.learning_rate.",
    ]
    (noise,) = mattered(Importances(rows[2:], 12, 12))
    assert noise.endswith("shuffled results of these 12 trials say as much.")
    (few,) = mattered(Importances((), 5, 5))
    assert few == "What mattered cannot be said yet: 5 trials are too few."
