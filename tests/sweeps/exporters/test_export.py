"""What `export` says of a trial whose adapter is not there any more."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peft_jobs import SpecError, State, TrialResult
from peft_jobs.storage.files import write_json
from sweeps.driver.driver import Driver
from sweeps.exporters.export import export_trial
from sweeps.records.layout import SweepFolder
from sweeps.study.study import SweepStudy
from sweeps.tracking import NoTracker


@pytest.fixture
def export(open_study: Callable[..., SweepStudy], tmp_path: Path) -> Callable[..., object]:
    """Sections -> exports trial 1, the second best of two, or another one; each has an `adapter`
    with a name in it, but for trial 1 without checkpoints.keep."""

    def run(number: int = 1, **sections: Any) -> object:
        study = open_study(pruner="none", **sections)
        folder = SweepFolder.of(study.spec)
        driver = Driver(study.spec, study, NoTracker(), folder)
        for loss in (1.0, 2.0):
            assignment = driver.ask()
            assert assignment is not None
            (Path(assignment.directory) / "adapter").mkdir()
            (Path(assignment.directory) / "adapter" / "weights").write_text("as trained")
            metrics = {"validation/loss": loss}
            result = TrialResult(state=State.COMPLETE, metrics=metrics, adapter="adapter")
            driver.end(assignment.trial, result)
        write_json(folder.path / "sweep.json", {"sweep": study.spec.model_dump(mode="json")})
        if study.spec.checkpoints.keep is None:
            shutil.rmtree(folder.trial(1) / "adapter")
        return export_trial(folder.storage, study.spec.name, number, tmp_path / "out")

    return run


def test_an_adapter_that_was_not_kept_is_said_to_be_in_mlflow(export: Callable[..., Any]) -> None:
    with pytest.raises(SpecError, match=r"trial 1 was deleted by checkpoints.keep: 1; MLflow has"):
        export(checkpoints={"keep": 1}, tracking={"experiment": "mine"})


def test_an_adapter_that_was_not_kept_anywhere(export: Callable[..., Any]) -> None:
    with pytest.raises(SpecError, match=r"trial 1 was deleted by checkpoints.keep: 1$"):
        export(checkpoints={"keep": 1})


def test_an_adapter_that_somebody_else_deleted(export: Callable[..., Any]) -> None:
    with pytest.raises(SpecError, match=r"the adapter of trial 1 is gone: no .*0001/adapter"):
        export(tracking={"experiment": "mine"})


def test_an_export_that_cannot_begin_leaves_nothing_in_its_place(
    export: Callable[..., Any], tmp_path: Path
) -> None:
    with pytest.raises(SpecError, match="is gone"):
        export()
    assert not (tmp_path / "out").exists()


def test_what_was_scored_is_not_scored_again_where_there_is_no_test_split(
    export: Callable[..., Any], tmp_path: Path
) -> None:
    with pytest.raises(Exception, match=r"adapter_config\.json"):
        export(number=0)  # these weights cannot be loaded, let alone scored
    assert (tmp_path / "out" / "weights").read_text() == "as trained"
    path = tmp_path / "out" / "export.json"
    record = json.loads(path.read_text())
    assert record["validation"] is None
    path.write_text(json.dumps({**record, "validation": {"validation/loss": 1.0}}))
    (tmp_path / "out" / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    again = export_trial(tmp_path / "runs", "simulated", 0, tmp_path / "out")
    assert again.validation == {"validation/loss": 1.0}
