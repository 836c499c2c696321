"""What `export` says of a trial whose adapter is not there any more."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peft_jobs import SpecError, State, TrialResult
from peft_jobs.files import write_json
from sweeps.driver import Driver
from sweeps.export import export_trial
from sweeps.layout import SweepFolder
from sweeps.study import SweepStudy
from sweeps.tracking import NoTracker


@pytest.fixture
def export(open_study: Callable[..., SweepStudy], tmp_path: Path) -> Callable[..., object]:
    """Sections -> exports trial 1, the second best of two, whose folder `adapter` is empty."""

    def run(**sections: Any) -> object:
        study = open_study(pruner="none", **sections)
        folder = SweepFolder.of(study.spec)
        driver = Driver(study.spec, study, NoTracker(), folder)
        for loss in (1.0, 2.0):
            assignment = driver.ask()
            assert assignment is not None
            (Path(assignment.directory) / "adapter").mkdir()
            metrics = {"validation/loss": loss}
            result = TrialResult(state=State.COMPLETE, metrics=metrics, adapter="adapter")
            driver.end(assignment.trial, result)
        write_json(folder.path / "sweep.json", {"sweep": study.spec.model_dump(mode="json")})
        if study.spec.checkpoints.keep is None:
            (folder.trial(1) / "adapter").rmdir()
        return export_trial(folder.storage, study.spec.name, number=1, out=tmp_path / "out")

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
