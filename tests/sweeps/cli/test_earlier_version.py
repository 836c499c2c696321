"""A storage that version 0.1 recorded, with its modules where they lay then, is still read.

It holds one sweep on the demo's base: trial 0 (a bottleneck adapter, exported by that version) and
trial 1 (LoRA) are complete, trial 2 was pruned, and trial 3 was interrupted after 17 of 80 steps.
"""

import json
import tarfile
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from transformers import AutoModelForCausalLM

from sweeps import open_sweep
from tests.sweeps.cli.conftest import Cli

RECORDED = Path(__file__).parent / "earlier" / "storage-0.1.tar.gz"


@pytest.fixture
def earlier(folder: Path) -> Path:
    """The sweep's folder, in the storage `runs` of the current folder."""
    with tarfile.open(RECORDED) as archive:
        archive.extractall(folder / "runs", filter="data")
    return folder / "runs" / "recorded"


def told(cli: Cli, *words: str) -> str:
    done = cli(*words)
    assert done.exit_code == 0, done.output
    return done.stdout


def recorded_board(folder: Path) -> Any:
    """What version 0.1 wrote, but that the trial it left is interrupted and has its minutes."""
    board = json.loads((folder / "leaderboard.json").read_text())
    (left,) = (row for row in board["rows"] if row["state"] == "RUNNING")
    left |= {"state": "INTERRUPTED", "minutes": pytest.approx(0.98 / 60, abs=1e-3)}
    return board


def test_the_leaderboard_is_the_recorded_one(cli: Cli, earlier: Path) -> None:
    recorded = recorded_board(earlier)
    found = json.loads(told(cli, "leaderboard", "recorded", "--json"))
    assert found.pop("verdict")["chosen"]["number"] == recorded["rows"][0]["number"]
    assert found == recorded
    assert [row["state"] for row in recorded["rows"]].count("COMPLETE") == 2


def test_it_opens_from_python_too(earlier: Path) -> None:
    recorded = recorded_board(earlier)
    sweep = open_sweep(earlier.parent, "recorded")
    assert json.loads(json.dumps(sweep.leaderboard().to_json())) == recorded
    states = sweep.trials().to_frame()["state"]
    assert list(states) == ["COMPLETE", "COMPLETE", "PRUNED", "INTERRUPTED"]
    curves = sweep.curves().to_frame()
    assert list(dict.fromkeys(curves["trial"])) == [0, 1, 2, 3]
    for trial in sweep.study.trials():
        rungs = curves[(curves["trial"] == trial.number) & curves["rung"].notna()]
        values = dict(zip(rungs["rung"], rungs["validation/loss"], strict=True))
        assert values == trial.intermediate_values


def test_a_trial_is_shown(cli: Cli, earlier: Path) -> None:
    assert "bottleneck" in told(cli, "show", "recorded", "0")


def test_a_page_is_made_of_it(cli: Cli, earlier: Path) -> None:
    told(cli, "report", "recorded")
    page = (earlier / "report.html").read_text(encoding="utf-8")
    assert "What to train: trial 0001" in page
    assert "bottleneck" in page


def test_an_interrupted_trial_goes_on_from_its_checkpoint(cli: Cli, earlier: Path) -> None:
    before = {n: (earlier / f"trials/000{n}/result.json").read_text() for n in range(3)}
    told(cli, "resume", "recorded")
    result = json.loads((earlier / "trials/0003/result.json").read_text())
    # Version 0.1 pruned it at step 20: halving waited for no trials then.
    assert (result["state"], result["step"]) == ("COMPLETE", 80)
    assert result["provenance"]["resumed_from"] == 17
    # What version 0.1 had gone on to, from the same checkpoint.
    rung = max(open_sweep(earlier.parent, "recorded").study.trials()[3].intermediate_values.items())
    assert rung[1] == pytest.approx(4.99933, abs=1e-3)
    assert before == {n: (earlier / f"trials/000{n}/result.json").read_text() for n in range(3)}
    client = mlflow.MlflowClient(f"sqlite:///{earlier.parent / 'mlflow.db'}")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    # The sweep, three trials that version 0.1 ended, the pruned one as KILLED, and this one.
    assert sorted(run.info.status for run in runs) == ["FINISHED"] * 4 + ["KILLED"]


@pytest.mark.parametrize("number", ["0", "1"])
def test_an_adapter_is_exported_and_measures_what_was_recorded(
    cli: Cli, earlier: Path, number: str
) -> None:
    told(cli, "export", "recorded", "--trial", number, "--out", "out")
    record = json.loads(Path("out/export.json").read_text())
    loss = record["recorded"]["validation/loss"]
    assert record["validation"]["validation/loss"] == pytest.approx(loss, abs=1e-3)


def test_an_adapter_exported_then_loads_by_the_reference_in_its_configuration(
    earlier: Path,
) -> None:
    from peft_jobs.demo import BASE
    from peft_jobs.methods import load_adapter

    exported = earlier / "exports" / "trial-0000"
    about = json.loads((exported / "adapter_config.json").read_text())
    assert about["loader"] == "peft_jobs.methods:load_adapter"
    base = AutoModelForCausalLM.from_pretrained(BASE)
    inputs = torch.tensor([[1, 5, 9, 4]])
    plain = base(inputs).logits
    assert not torch.allclose(load_adapter(base, str(exported)).eval()(inputs).logits, plain)
