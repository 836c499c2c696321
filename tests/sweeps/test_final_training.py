"""`train` from end to end: the winner of a sweep on all the data, under fresh seeds, exported."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from peft_jobs import SpecError
from sweeps import SweepSpec
from sweeps.cli.commands.run import Options
from sweeps.cli.commands.train import Wanted, train
from sweeps.exporters.export import export_trial
from sweeps.results.recorded_sweep import open_sweep
from sweeps.run import launch
from sweeps.study.study import SweepStudy

Sweep = Callable[..., SweepSpec]
REAL = ("resources.engine=packed", "data.validation_subset=32")


def trained(spec: SweepSpec, name: str) -> SweepStudy:
    return open_sweep(spec.storage, name).study


def test_the_winner_of_a_sweep_is_trained_and_its_median_seed_exported(
    sweep: Sweep, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = sweep(data={"test": "demo"}, budget={"n_trials": 3})
    board = launch(spec).leaderboard
    assert board.best is not None
    storage = Path(spec.storage)
    few = Wanted(epochs=0.05, seeds=3)
    options = Options(overrides=REAL, inline=True, plain=True, json=True)
    assert train(storage, spec.name, few, options) == 0
    told = json.loads(capsys.readouterr().out)
    name = f"simulated-final-{board.best.number:04d}"
    assert told["sweep"] == name
    values = {int(number): value for number, value in told["final"]["values"].items()}
    assert sorted(values) == [0, 1, 2]
    assert len({*values.values()}) == 3, "three seeds"
    middle = sorted(values.values())[1]
    assert values[told["median"]] == middle
    exported = export_trial(storage, name, to=("rayjob",))  # what is there is taken up
    job = (exported.path / "rayjob" / "job.yaml").read_text()
    assert f"peft-sweep train {spec.name} --trial {board.best.number} --storage" in job
    assert str(exported.path) == told["exported"]
    assert exported.number == told["median"]
    assert exported.recorded["validation/loss"] == middle
    assert exported.validation["validation/loss"] == pytest.approx(middle, abs=1e-4)
    assert exported.test is not None
    for trial in trained(spec, name).launched():
        params = trial.user_attrs["params"]
        assert [*params] == ["seed"]
        assert params["seed"] != spec.seed

    assert train(storage, spec.name, few, options) == 0
    again = json.loads(capsys.readouterr().out)
    assert again == told, "nothing was left to do"

    with pytest.raises(SpecError, match="is a final training: give the sweep that it is of"):
        train(storage, name, few, options)


def test_more_seeds_can_be_added_later(sweep: Sweep) -> None:
    spec = sweep(budget={"n_trials": 3})
    launch(spec)
    options = Options(inline=True, plain=True)
    seeds: list[list[int]] = []
    for number in (1, 3):
        with pytest.raises(SpecError, match="left no adapter"):  # simulated trials have none
            train(Path(spec.storage), spec.name, Wanted(trial=1, seeds=number), options)
        study = trained(spec, "simulated-final-0001")
        seeds.append([trial.user_attrs["params"]["seed"] for trial in study.launched()])
    verdict = open_sweep(spec.storage, spec.name).verdict()
    assert verdict.trained == ("simulated-final-0001",)
    assert "Trained on all the data: simulated-final-0001." in verdict.sentences()
    final = open_sweep(spec.storage, "simulated-final-0001").verdict()
    assert final.headline.startswith("Trial 0001 of simulated on all the data: validation/loss ")
    assert (final.tied, final.bounds, final.trained) == ((), (), ())
    assert len(seeds[0]) == 1
    assert len({*seeds[1]}) == 3
    assert seeds[1][:1] == seeds[0]


def test_a_trial_that_is_not_there(sweep: Sweep) -> None:
    spec = sweep(budget={"n_trials": 2})
    launch(spec)
    with pytest.raises(SpecError, match="has no trial 99"):
        train(Path(spec.storage), spec.name, Wanted(trial=99), Options(inline=True))
