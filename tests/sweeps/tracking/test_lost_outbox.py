"""A driver that goes on without the outbox of the one before: its machine, or tracking, is new."""

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import optuna
import pytest

from peft_jobs import State, TrialResult
from sweeps import SweepSpec
from sweeps.driver.driver import Driver
from sweeps.records.layout import SweepFolder
from sweeps.run import launch
from sweeps.study.study import SweepStudy
from sweeps.tracking import MlflowTracker
from sweeps.tracking.outbox import Outbox
from tests.support.mlflow_database import lay_out

TRACKED = {"experiment": "lost"}


@pytest.fixture(autouse=True)
def database(tmp_path: Path) -> None:
    lay_out(tmp_path / "runs")


def lose_outbox(folder: SweepFolder) -> None:
    for file in folder.path.glob("tracking.db*"):
        file.unlink()


def times(spec: SweepSpec) -> list[tuple[datetime | None, datetime | None]]:
    """When each trial started and ended, as the study says."""
    study = optuna.load_study(study_name=spec.name, storage=SweepFolder.of(spec).study_url)
    return [(t.datetime_start, t.datetime_complete) for t in study.trials]


def check_times(store, spec: SweepSpec) -> None:
    for number, (_, ended) in enumerate(times(spec)):
        assert store.children[number].info.end_time == int(ended.timestamp() * 1000)


def test_what_is_recorded_stays_as_it_is(sweep: Callable[..., SweepSpec], look) -> None:
    resources = {"engine_options": {"faults": {1: "bug"}}}
    spec = sweep(budget={"n_trials": 3}, resources=resources, tracking=TRACKED)
    folder = SweepFolder.of(spec)
    launch(spec)
    files = {file: file.read_text() for file in folder.path.glob("trials/*/*.json")}
    assert json.loads(files[folder.result(1)])["traceback"]
    before = look(folder.tracking_url, "lost")
    lose_outbox(folder)
    assert launch(spec).undelivered == 0
    assert {file: file.read_text() for file in files} == files
    after = look(folder.tracking_url, "lost")
    assert len(after.runs) == len(before.runs) == 1 + 3
    for number, was in before.children.items():
        run = after.children[number]
        assert (run.info.run_id, run.info.status) == (was.info.run_id, was.info.status)
        assert (run.info.run_name, run.info.start_time) == (was.info.run_name, was.info.start_time)
        assert (run.data.params, run.data.tags) == (was.data.params, was.data.tags)
        assert run.data.metrics == was.data.metrics
        for metric in run.data.metrics:
            assert after.points(run, metric) == before.points(was, metric)
    check_times(after, spec)


def test_tracking_that_is_switched_on_later_has_the_trials_before(
    sweep: Callable[..., SweepSpec], look
) -> None:
    launch(sweep(budget={"n_trials": 3}))
    spec = sweep(budget={"n_trials": 3}, tracking=TRACKED)
    assert launch(spec).undelivered == 0
    store = look(SweepFolder.of(spec).tracking_url, "lost")
    assert sorted(store.children) == [0, 1, 2]
    for number, run in store.children.items():
        assert run.info.run_name.startswith(f"trial-{number:04d}-r")
        assert run.data.tags["sweep"] == "simulated"
        assert float(run.data.params["training.learning_rate"]) > 0
        assert run.data.tags["trial.state"] in ("COMPLETE", "PRUNED")
        started = times(spec)[number][0]
        assert run.info.start_time == int(started.timestamp() * 1000)
    check_times(store, spec)


def test_an_adapter_that_only_mlflow_has_is_not_missed(
    open_study: Callable[..., SweepStudy], look, caplog: pytest.LogCaptureFixture
) -> None:
    def driver() -> Driver:
        study = open_study(checkpoints={"keep": 1}, pruner="none")
        folder = SweepFolder.of(study.spec)
        url, name, key = folder.tracking_url, study.spec.name, study.key
        tracker = MlflowTracker(folder.outbox, url, "adapters", name, sweep_key=key)
        return Driver(study.spec, study, tracker, folder)

    first = driver()
    folder = first.folder
    for loss in (1.0, 2.0):
        assignment = first.ask()
        assert assignment is not None
        adapter = Path(assignment.directory) / "adapter"
        adapter.mkdir()
        (adapter / "adapter_config.json").write_text("{}")
        result = TrialResult(
            state=State.COMPLETE, metrics={"validation/loss": loss}, adapter="adapter"
        )
        first.end(assignment.trial, result)
    assert first.tracker.close(60) == 0
    first.drop_adapters()
    assert not (folder.trial(1) / "adapter").exists()
    lose_outbox(folder)
    assert driver().tracker.close(60) == 0
    assert Outbox(folder.outbox).dead_letters() == []
    assert "refused" not in caplog.text
    store = look(folder.tracking_url, "adapters")
    for run in store.children.values():
        assert "adapter/adapter_config.json" in store.artifacts(run)
