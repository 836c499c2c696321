"""What trials leave is written beside their steps: no slot waits for another's disk."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from peft_jobs import faults
from peft_jobs.engines.packed.adapter import checkpoint_tensors
from peft_jobs.engines.packed.packed_engine import PackedEngine
from peft_jobs.engines.solo.solo_engine import SoloEngine
from peft_jobs.storage.attempt_folder import ROWS_FILE
from tests.peft_jobs.engines.packed.test_engine import check_same
from tests.support.packed_runs import Driven, run_all

NUM_STEPS = 8


@pytest.fixture
def fault(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """(action, point) -> the marker of a fault in the first file that is written there."""

    def plan(action: str, point: str = "checkpoint.writing") -> Path:
        marker = tmp_path / "marker"
        planned = {"point": point, "action": action, "marker": str(marker)}
        monkeypatch.setenv(faults.VARIABLE, json.dumps(planned))
        faults._planned.cache_clear()
        faults._passed.clear()
        return marker

    yield plan
    faults._planned.cache_clear()


def expected_of(cache: str, specs: list[Any], folder: Path) -> Any:
    return run_all(SoloEngine(cache, threads=1), specs, folder / "solo")


def test_a_checkpoint_that_is_never_written_delays_no_step(
    cache: str, mixed: Any, tmp_path: Path, fault: Any
) -> None:
    specs = mixed()[:3]
    expected = expected_of(cache, specs, tmp_path)
    marker = fault("pause")
    engine = PackedEngine(cache, num_slots=3, threads=1, checkpoint_seconds=1e-6)
    last: set[int] = set()
    named: list[tuple[int, int, str]] = []

    def heard(host: Any, trial: int, report: Any) -> None:
        if report.checkpoint is not None:
            named.append((trial, report.step, report.checkpoint))
        if report.step == NUM_STEPS:
            last.add(trial)
        if len(last) == 3 and not marker.read_text():
            assert marker.exists(), "one is being written"
            assert named == [], "and none of those after it has begun"
            assert host.status()["running"] == [0, 1, 2], "nobody has ended without its own"
            marker.write_text("go on")

    found = run_all(engine, specs, tmp_path / "packed", heard)
    reports = {trial: [r for r in told if r.metrics] for trial, told in found[0].items()}
    check_same(expected, (reports, found[1]))
    assert marker.read_text() == "go on"
    assert {trial for trial, *_ in named} == {0, 1, 2}, "all are told of before the ends"
    for _, step, path in named:
        assert Path(path).name == f"step-{step:08d}"
        assert step < NUM_STEPS


def test_at_a_rung_a_trial_waits_for_its_own_checkpoint_and_nobody_else(
    cache: str, mixed: Any, tmp_path: Path, fault: Any
) -> None:
    specs = mixed()[:3]
    specs[0] = specs[0].with_params({"evaluation.rungs": [9]})
    expected = expected_of(cache, specs, tmp_path)
    marker = fault("pause")
    engine = PackedEngine(cache, num_slots=3, threads=1, checkpoint_seconds=1e9)
    told: dict[int, int] = {}
    at_rung: list[Any] = []

    def heard(host: Any, trial: int, report: Any) -> None:
        told[trial] = report.step
        if report.rung is not None:
            at_rung.append((report.step, Path(report.checkpoint).name, marker.read_text()))
        if told.get(1) == told.get(2) == NUM_STEPS and not at_rung:
            assert told[0] == 2, "what led to the rung"
            marker.write_text("go on")

    check_same(expected, run_all(engine, specs, tmp_path / "packed", heard))
    assert at_rung == [(3, "step-00000003", "go on")]


def test_what_was_found_of_each_row_is_written_while_others_go_on(
    cache: str, mixed: Any, tmp_path: Path, fault: Any
) -> None:
    """The trial itself waits at its rung, as its checkpoint is written after it."""
    specs = mixed()[:3]
    specs[0] = specs[0].with_params({"evaluation.rungs": [9]})
    expected = expected_of(cache, specs, tmp_path)
    marker = fault("pause", "rows.writing")
    engine = PackedEngine(cache, num_slots=3, threads=1, checkpoint_seconds=1e9)
    told: dict[int, int] = {}
    file = tmp_path / "packed" / "0" / "attempts" / "1" / ROWS_FILE

    def heard(host: Any, trial: int, report: Any) -> None:
        told[trial] = report.step
        if told.get(1) == told.get(2) == NUM_STEPS and not marker.read_text():
            assert told[0] == 2
            assert not file.exists()
            marker.write_text("go on")

    check_same(expected, run_all(engine, specs, tmp_path / "packed", heard))
    assert marker.read_text() == "go on"
    written, alone = (
        pq.read_table(path)
        for path in (file, tmp_path / "solo" / file.relative_to(tmp_path / "packed"))
    )
    assert written.column_names == alone.column_names
    assert written["row"].equals(alone["row"])


def test_a_disk_that_is_full_costs_the_checkpoint_alone(
    cache: str, mixed: Any, tmp_path: Path, fault: Any, caplog: pytest.LogCaptureFixture
) -> None:
    specs = [spec.with_params({"evaluation.rungs": [9, 17]}) for spec in mixed()[:1]]
    expected = expected_of(cache, specs, tmp_path)
    fault("full_disk")
    engine = PackedEngine(cache, num_slots=3, threads=1, checkpoint_seconds=1e9)
    found = run_all(engine, specs, tmp_path / "packed")
    check_same(expected, found)
    rungs = [(report.rung, report.checkpoint) for report in found[0][0] if report.rung is not None]
    assert [rung for rung, _ in rungs] == [9, 17]
    assert rungs[0][1] is None
    assert rungs[1][1] is not None
    assert "no checkpoint at step 3: [Errno 28]" in caplog.text


def test_an_adapter_that_cannot_be_written_ends_its_trial_alone(
    cache: str, mixed: Any, tmp_path: Path
) -> None:
    specs = mixed(**{"training.max_steps": 3})[:3]
    taken = tmp_path / "1" / "attempts" / "1" / "adapter"
    taken.parent.mkdir(parents=True)
    taken.write_text("a file that is in the way")
    _, ends = run_all(PackedEngine(cache, num_slots=3, threads=1), specs, tmp_path)
    assert [ends[trial].state for trial in range(3)] == ["COMPLETE", "FAIL", "COMPLETE"]
    assert "adapter" in ends[1].error
    assert ends[1].step == 3
    log = (taken.parent / "log.txt").read_text()
    assert "the trial failed" in log


def test_a_copy_is_what_a_row_held_when_it_was_made(double: Any, mixed: Any) -> None:
    base, rows = double
    with Driven(base, rows, mixed()[:2], 4) as driven:
        while len(driven.losses[0]) < 2:
            driven.step([0, 1])
        row = driven.pack_rows[0]
        held, copies = row.capture(), row.copies(partial(checkpoint_tensors, parts=driven.parts[0]))
        while len(driven.losses[0]) < 3:
            driven.step([0, 1])
        found, changed = copies.read(), row.capture()
    for (module, part), value in held.values.items():
        name = f"base_model.model.{module}.{part}.default.weight"
        assert torch.equal(found[f"model/{name}"], value)
        assert found[f"model/{name}"].is_contiguous()
        assert torch.equal(
            found[f"optimizer/{name}/exp_avg"], held.moments["exp_avg"][module, part]
        )
        assert not torch.equal(found[f"model/{name}"], changed.values[module, part])
    assert len(found) == 4 * len(held.values)
