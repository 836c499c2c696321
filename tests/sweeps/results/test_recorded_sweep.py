"""A recorded sweep as data: each frame holds what the study and the trials' files hold."""

import io
import json
import math
import shutil
from pathlib import Path
from typing import Any

import optuna
import pandas
import pytest

from peft_jobs import Progress, SpecError
from sweeps import RecordedSweep, build_sweep, open_sweep
from sweeps.results.reports import to_csv
from sweeps.run import launch

SWEEP: dict[str, Any] = {
    "name": "simulated",
    "model": "demo",
    "task": {"type": "causal_lm", "prompt": "{record} ", "response": "{sentence}"},
    "data": {"train": "demo", "validation": "demo"},
    "space": {
        "parameters": {
            "adapter.r": {"choices": [4, 8, 16, 32]},
            "adapter.target_modules": {"choices": ["attention-qv", "all-linear"]},
            "training.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
        },
        "constraints": ["adapter.r > 4"],
    },
    "budget": {"n_trials": 10, "max_samples": 900},
    "resources": {"backend": "inline", "engine": "simulated"},
    "tracking": "none",
    "seed": 1,
}


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of ten simulated trials: some pruned, some failed, some points rejected."""
    storage = tmp_path_factory.mktemp("storage")
    faults = {"engine_options": {"faults": {3: "bug", 4: "bug"}}}
    resources = {**SWEEP["resources"], **faults}
    launch(build_sweep({**SWEEP, "storage": str(storage), "resources": resources}))
    sweep = open_sweep(storage, "simulated")
    for trial in sweep.study.trials():  # as the engines that train write them
        for rung, value in sorted(trial.intermediate_values.items()):
            metrics = {"train/loss": value + 1, "validation/loss": value}
            report = Progress(step=rung // 9, samples=rung, tokens=rung, metrics=metrics, rung=rung)
            path = sweep.folder.attempt(trial.number, 1) / "metrics.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a") as file:
                file.write(report.model_dump_json() + "\n")
    return storage


@pytest.fixture
def recorded(storage: Path, tmp_path: Path) -> RecordedSweep:
    """The sweep, in a copy of the storage."""
    shutil.copytree(storage, tmp_path / "runs")
    return open_sweep(tmp_path / "runs", "simulated")


def trials_of(sweep: RecordedSweep) -> list[optuna.trial.FrozenTrial]:
    """As Optuna itself reads them."""
    storage = f"sqlite:///{Path(sweep.spec.storage) / 'optuna.db'}"
    return optuna.load_study(study_name=sweep.name, storage=storage).get_trials()


def as_told(value: object) -> object:
    """None for what a frame has in an empty place."""
    return None if value is None or pandas.isna(value) else value


def test_the_frame_of_the_leaderboard_is_its_rows(recorded: RecordedSweep) -> None:
    board, told = recorded.leaderboard(), {t.number: t for t in trials_of(recorded)}
    frame = board.to_frame()
    assert list(frame["number"]) == [row.number for row in board.rows]
    assert len(frame) == 10
    assert {"COMPLETE", "PRUNED", "FAIL"} == set(frame["state"])
    for index, row in enumerate(frame.to_dict("records")):
        trial = told[row["number"]]
        assert row["state"] == trial.state.name
        assert as_told(row["rank"]) == (index + 1 if row["state"] == "COMPLETE" else None)
        for name, value in trial.user_attrs["params"].items():
            assert row[name] == value
        for name, value in trial.user_attrs["result"]["metrics"].items():
            assert row[name] == value


def test_the_frame_of_the_leaderboard_is_its_csv(recorded: RecordedSweep) -> None:
    board = recorded.leaderboard()
    read = pandas.read_csv(io.StringIO(to_csv(board)))
    (reference,) = read[read["number"].isna()].to_dict("records")
    assert (reference["value"], reference["note"]) == (4.0, "base without adapter")
    read = read[read["number"].notna()]
    frame = board.to_frame()
    assert list(read.columns) == list(frame.columns)
    for name in frame.columns:
        assert [*map(as_told, frame[name])] == [*map(as_told, read[name])]


def test_the_frame_of_the_trials_has_every_trial_of_the_study(recorded: RecordedSweep) -> None:
    frame = recorded.trials().to_frame()
    told = trials_of(recorded)
    assert list(frame["number"]) == [trial.number for trial in told]
    for row, trial in zip(frame.to_dict("records"), told, strict=True):
        known = trial.user_attrs
        assert (row["state"], as_told(row["kind"])) == (trial.state.name, known.get("kind"))
        assert as_told(row["attempt"]) == known.get("attempt")
        assert row["started"] == trial.datetime_start
        assert row["ended"] == trial.datetime_complete
        for name, value in {
            **known["params"],
            **known.get("result", {}).get("metrics", {}),
        }.items():
            assert row[name] == value
    assert frame["ended"].dtype.kind == "M"
    assert "rejected" in set(frame["kind"])
    assert "adapter.r" in frame[frame["kind"] == "rejected"]["error"].iloc[0]
    assert frame[frame["kind"] == "bug"]["error"].notna().all()


def test_the_frame_of_the_curves_has_what_the_pruner_saw(recorded: RecordedSweep) -> None:
    frame = recorded.curves().to_frame()
    assert list(frame.columns[:6]) == ["trial", "attempt", "step", "samples", "tokens", "rung"]
    told = {t.number: t for t in trials_of(recorded) if t.intermediate_values}
    assert len(told) > 5
    for number, trial in told.items():
        at_rungs = frame[(frame["trial"] == number) & frame["rung"].notna()]
        values = dict(zip(at_rungs["rung"], at_rungs["validation/loss"], strict=True))
        assert values == trial.intermediate_values
        assert frame[frame["trial"] == number]["step"].is_monotonic_increasing


def test_a_later_attempt_takes_the_place_of_the_steps_that_it_repeats(
    recorded: RecordedSweep,
) -> None:
    def line(step: int, loss: float | None = None) -> str:
        metrics = {} if loss is None else {"train/loss": loss}
        return Progress(step=step, samples=step, tokens=step, metrics=metrics).model_dump_json()

    storage = f"sqlite:///{recorded.folder.storage / 'optuna.db'}"
    trial = optuna.load_study(study_name="simulated", storage=storage).ask()
    trial.set_user_attr("attempt", 2)
    attempts = {
        1: [line(1, 4.0), line(2, 3.0), line(3, 2.0), line(4, 1.0)],
        2: [line(2), line(3, 2.5), line(5, 0.5), line(6, 0.25)[:20]],
        3: [line(1, 9.0)],  # of a host that the study has given up
    }
    for attempt, lines in attempts.items():
        path = recorded.folder.attempt(trial.number, attempt) / "metrics.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text("\n".join(lines))
    frame = recorded.curves().to_frame()
    rows = frame[frame["trial"] == trial.number][["attempt", "step", "train/loss"]]
    assert rows.to_numpy().tolist() == [
        *([1, 1, 4.0], [1, 2, 3.0], [2, 3, 2.5], [1, 4, 1.0], [2, 5, 0.5])
    ]


def test_a_sweep_without_trials_has_empty_frames(recorded: RecordedSweep) -> None:
    record = json.loads((recorded.folder.path / "sweep.json").read_text())
    record["sweep"]["name"] = "empty"
    (recorded.folder.storage / "empty").mkdir()
    (recorded.folder.storage / "empty" / "sweep.json").write_text(json.dumps(record))
    url = f"sqlite:///{recorded.folder.storage / 'optuna.db'}"
    optuna.create_study(study_name="empty", storage=url).set_user_attr("key", "empty-0")
    empty = open_sweep(recorded.folder.storage, "empty")
    for table in (empty.leaderboard(), empty.trials(), empty.curves()):
        frame = table.to_frame()
        assert len(frame) == 0
        assert len(frame.columns) > 5


def test_reading_changes_nothing(recorded: RecordedSweep) -> None:
    def files() -> dict[Path, bytes]:
        storage = Path(recorded.spec.storage)
        return {path: path.read_bytes() for path in storage.rglob("*") if path.is_file()}

    before = files()
    again = open_sweep(recorded.folder.storage, recorded.name)
    assert not math.isnan(again.leaderboard().to_frame()["value"].iloc[0])
    assert len(again.trials().rows) > 0
    assert len(again.curves().rows) > 0
    assert files() == before


def test_an_unknown_sweep_is_answered_with_the_known_ones(recorded: RecordedSweep) -> None:
    with pytest.raises(SpecError, match="did you mean 'simulated'"):
        open_sweep(recorded.folder.storage, "simulatd")
