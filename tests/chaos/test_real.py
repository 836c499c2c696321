"""The same with trials that train: an NF4 base, LoRA, checkpoints of adapter and optimizer."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.breaking import Broken, sweep_tree
from tests.support.left_behind import TrialRecord
from tests.support.ray_nodes import Launched, drivers

pytestmark = pytest.mark.slow
Drive = Callable[..., Launched]
TOLERANCE = 1e-5


def real_tree(storage: Path) -> dict[str, Any]:
    """Three real trials of 20 steps, one at a time, a checkpoint every half second."""
    return sweep_tree(
        storage,
        task={"type": "causal_lm", "prompt": "{record}\n", "response": "{sentence}"},
        data={"max_length": 128, "validation_subset": 48},
        training={
            "per_device_train_batch_size": 8,
            "lr_scheduler_type": "linear",
            "logging_steps": 5,
        },
        budget={"n_trials": 3, "max_samples": 160, "num_rungs": 1},
        checkpoints={"every_seconds": 0.5},
        resources={"engine": "solo", "engine_options": {}},
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[int, TrialRecord]:
    """The records of the sweep that nothing happened to."""
    folder = tmp_path_factory.mktemp("trained")
    with drivers(folder) as start:
        sweep = Broken(real_tree(folder / "runs"), start)
        sweep.finish(sweep.launch())
    found = sweep.read()
    assert len(found) == 3
    return found


def check(sweep: Broken, trained: dict[int, TrialRecord]) -> None:
    """As the unbroken sweep; and MLflow has every point of every metrics file."""
    sweep.check_same(trained, TOLERANCE)
    for number, record in sweep.read().items():
        points = {(name, step): value for name, step, value in record.runs[0]["points"]}
        files = sorted(sweep.folder.glob(f"trials/{number:04d}/attempts/*/metrics.jsonl"))
        lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
        assert lines
        for line in lines:
            for name, value in line["metrics"].items():
                assert points[name, line["step"]] == pytest.approx(value, abs=TOLERANCE)


@pytest.mark.parametrize(
    ("point", "nth"),
    [
        ("ask.recorded", 2),
        ("report.reported", 2),
        ("report.decided", 1),
        ("tell.result", 1),
        ("end.file", 2),
        ("outbox.delivered", 2),
    ],
)
def test_a_real_trial_survives_its_drivers_death(
    drive: Drive, tmp_path: Path, trained: dict[int, TrialRecord], point: str, nth: int
) -> None:
    sweep = Broken(real_tree(tmp_path / "runs"), drive, label="real NF4 trial: ")
    sweep.die(point, nth)
    sweep.complete()
    check(sweep, trained)


@pytest.mark.parametrize(
    ("point", "nth", "action"),
    [
        ("checkpoint.writing", 2, "kill"),
        ("checkpoint.written", 2, "kill"),
        ("checkpoint.writing", 1, "full_disk"),
    ],
)
def test_a_real_trial_survives_its_hosts_death_at_a_checkpoint(
    drive: Drive,
    tmp_path: Path,
    trained: dict[int, TrialRecord],
    point: str,
    nth: int,
    action: str,
) -> None:
    sweep = Broken(real_tree(tmp_path / "runs"), drive, label="real NF4 trial: ")
    driver = sweep.launch(point, nth, action)
    while not sweep.marker.exists():
        assert driver.process.poll() is None, driver.output.read_text()
        time.sleep(0.02)
    sweep.died(f"host, {action} at {point}")
    sweep.goes_on(driver)
    sweep.finish(driver)
    check(sweep, trained)
