"""What a driver finds when an earlier one died between two of its records."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peft_jobs import State, TrialResult
from sweeps import SweepSpec
from sweeps.driver.driver import Driver
from sweeps.errors import Unavailable
from sweeps.records.layout import SweepFolder
from sweeps.run import launch
from sweeps.study.study import SweepStudy
from sweeps.tracking import NoTracker


def test_a_result_file_that_was_not_written_any_more_is_written_by_the_next_driver(
    sweep: Callable[..., SweepSpec], tmp_path: Path
) -> None:
    spec = sweep(budget={"n_trials": 4}, resources={"engine_options": {"faults": {1: "bug"}}})
    launch(spec)
    files = sorted((tmp_path / "runs" / "simulated" / "trials").glob("*/result.json"))
    assert len(files) == 4
    before: list[Any] = [file.read_text() for file in files]
    for file in files[:3]:
        file.unlink()
    launch(spec)
    for file, text in zip(files, before, strict=True):
        assert file.read_text().replace("\n", "") == _without_traceback(text).replace("\n", "")


def test_an_adapter_that_a_dead_driver_had_moved_is_replaced_by_the_next_attempts(
    open_study: Callable[..., SweepStudy], tmp_path: Path
) -> None:
    study = open_study()
    driver = Driver(study.spec, study, NoTracker(), SweepFolder.of(study.spec))
    assignment = driver.ask()
    assert assignment is not None
    target = driver.folder.trial(assignment.trial) / "adapter"
    for folder, text in ((target, "old"), (Path(assignment.directory) / "adapter", "new")):
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").write_text(text)
    metrics = {"validation/loss": 1.0}
    driver.end(
        assignment.trial, TrialResult(state=State.COMPLETE, metrics=metrics, adapter="adapter")
    )
    assert (target / "adapter_config.json").read_text() == "new"
    assert driver.ended[assignment.trial].adapter == "trials/0000/adapter"


def _without_traceback(text: str) -> str:
    """The study keeps one line of an error; its traceback is in the attempt's folder."""
    lines = text.splitlines()
    return "\n".join(
        '  "traceback": null' if line.startswith('  "traceback"') else line for line in lines
    )


class Slow(NoTracker):
    """A tracker that has not delivered the trials in `undelivered`."""

    def __init__(self) -> None:
        self.undelivered: set[int] = set()

    def waits(self, number: int) -> bool:
        return number in self.undelivered


def test_only_the_best_adapters_stay_and_none_goes_before_it_is_delivered(
    open_study: Callable[..., SweepStudy],
) -> None:
    study = open_study(checkpoints={"keep": 2}, pruner="none")
    tracker = Slow()
    driver = Driver(study.spec, study, tracker, SweepFolder.of(study.spec))
    losses = [3.0, 1.0, 2.0, 0.5]
    tracker.undelivered = {2}
    for loss in losses:
        assignment = driver.ask()
        assert assignment is not None
        (Path(assignment.directory) / "adapter").mkdir()
        metrics = {"validation/loss": loss}
        driver.end(
            assignment.trial, TrialResult(state=State.COMPLETE, metrics=metrics, adapter="adapter")
        )

    def kept() -> list[int]:
        trials = driver.folder.path / "trials"
        return [int(path.parent.name) for path in sorted(trials.glob("*/adapter"))]

    assert kept() == [1, 2, 3]
    tracker.undelivered.clear()
    driver.drop_adapters()
    assert kept() == [1, 3]


def test_an_outbox_that_cannot_be_opened_is_told_with_the_remedy(
    sweep: Callable[..., SweepSpec],
) -> None:
    launch(sweep(budget={"n_trials": 1}))
    spec = sweep(budget={"n_trials": 2}, tracking={"experiment": "peft-sweeps"})
    SweepFolder.of(spec).outbox.write_text("no database, but long enough to be taken for one")
    with pytest.raises(Unavailable, match=r"tracking\.db, where records wait .* tracking=none"):
        launch(spec)
