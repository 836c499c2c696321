"""The tracker on real stores: a SQLite file, and a server over HTTP."""

import json
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from peft_jobs import TrialSpec
from peft_jobs.spec.dotted import flatten
from sweeps.tracking import Artifact, Dataset, MlflowTracker, Tracker, View, deliver_pending
from sweeps.tracking.outbox import Outbox

T0 = 1_700_000_000_000
PARAMS = {"adapter.r": 16, "adapter.target_modules": "attention", "training.learning_rate": 2e-4}


def run_small_sweep(tracker: Tracker, folder: Path) -> None:
    """Three trials: complete, pruned, failed."""
    adapter = folder / "adapter"
    (adapter / "nested").mkdir(parents=True)
    (adapter / "adapter_config.json").write_text('{"r": 16}')
    (adapter / "nested" / "weights.bin").write_bytes(bytes(range(256)))
    (folder / "leaderboard.csv").write_text("rank,trial\n1,0\n")
    tracker.sweep_started({"search.sampler": "tpe"}, {"mlflow.note.content": "running"}, [])
    for number in range(3):
        name = f"trial-{number:04d}-r16-a32-attention"
        tracker.trial_started(number, name, PARAMS, {"trial.state": "RUNNING"}, T0 + number)
    for step in range(1, 6):
        for number in range(3):
            loss = 3.0 - 0.1 * step + number
            tracker.trial_progress(number, {"train/loss": loss}, step, T0 + 10 * step)
    ends = [("FINISHED", "COMPLETE"), ("FINISHED", "PRUNED"), ("FAILED", "FAIL")]
    for number, (status, state) in enumerate(ends):
        artifacts = [Artifact(adapter, "adapter")] if number == 0 else []
        metrics = {"train/loss": 2.5 + number, "seconds/train": 1.5}
        tracker.trial_ended(number, status, metrics, {"trial.state": state}, artifacts, T0 + 99)
    leaderboard = Artifact(folder / "leaderboard.csv")
    tags = {"mlflow.note.content": "# Leaderboard"}
    tracker.sweep_ended("FINISHED", {"sweep/best_validation_loss": 2.5}, tags, [leaderboard])


def check_small_sweep(store) -> None:
    parent, children = store.parent, store.children
    assert (parent.info.run_name, parent.info.status) == ("small", "FINISHED")
    assert parent.data.tags["sweep"] == "small"
    assert parent.data.tags["mlflow.note.content"] == "# Leaderboard"
    assert parent.data.params == {"search.sampler": "tpe"}
    assert store.artifacts(parent) == {"leaderboard.csv"}
    assert sorted(children) == [0, 1, 2]
    assert [children[n].info.status for n in range(3)] == ["FINISHED", "FINISHED", "FAILED"]
    for number, child in children.items():
        assert child.info.run_name == f"trial-{number:04d}-r16-a32-attention"
        assert child.info.start_time == T0 + number
        assert child.info.end_time == T0 + 99
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert child.data.tags["sweep"] == "small"
        assert child.data.tags["trial.state"] == ["COMPLETE", "PRUNED", "FAIL"][number]
        assert child.data.params == {
            "adapter.r": "16",
            "adapter.target_modules": "attention",
            "training.learning_rate": "0.0002",
        }
        expected = [(step, pytest.approx(3.0 - 0.1 * step + number)) for step in range(1, 6)]
        assert store.points(child, "train/loss") == expected
        assert store.points(child, "seconds/train") == [(0, 1.5)]
    assert store.artifacts(children[0]) == {
        "adapter/adapter_config.json",
        "adapter/nested/weights.bin",
    }
    assert store.artifacts(children[1]) == set()


def test_a_sweep_in_a_sqlite_store(tmp_path, database, look) -> None:
    view = View("validation/loss", params=["adapter.r"])
    tracker = MlflowTracker(tmp_path / "outbox.db", database, "sqlite", "small", view=view)
    run_small_sweep(tracker, tmp_path)
    assert tracker.close(60) == 0
    store = look(database, "sqlite")
    check_small_sweep(store)
    assert store.experiment.artifact_location.endswith("/mlartifacts")
    assert "mlflow.sharedViewState.sweep-small" in store.experiment.tags
    assert (tmp_path / "adapter" / "adapter_config.json").exists()


def test_a_sweep_on_a_server(tmp_path, server, look) -> None:
    tracker = MlflowTracker(tmp_path / "outbox.db", server.url, "http", "small")
    run_small_sweep(tracker, tmp_path)
    assert tracker.close(60) == 0
    store = look(server.url, "http")
    check_small_sweep(store)
    assert store.experiment.artifact_location.startswith("mlflow-artifacts:")


def test_what_a_server_that_was_down_missed_is_delivered_once(tmp_path, gate, look) -> None:
    outbox = tmp_path / "outbox.db"
    tracker = MlflowTracker(outbox, gate.url, "outage", "small")
    run_small_sweep(tracker, tmp_path)
    put = 1 + 3 + 15 + 3 + 1 + 2  # sweep start, starts, steps, ends, sweep end, artifacts
    assert tracker.close(0.5) == put
    gate.open()
    assert deliver_pending(outbox, gate.url, "outage", "small") == 0
    check_small_sweep(look(gate.url, "outage"))


@pytest.mark.slow
def test_a_server_that_is_killed_at_work_and_restarted_has_each_point_once(
    tmp_path, own_server, look
) -> None:
    own_server.start()
    tracker = MlflowTracker(tmp_path / "outbox.db", own_server.url, "crash", "s")
    tracker.trial_started(0, "trial-0000", PARAMS, {}, T0)
    for step in range(1, 2001):
        tracker.trial_progress(0, {"train/loss": 1.0 * step}, step, T0 + step)
        if step in (500, 1000):
            own_server.stop(signal.SIGKILL)
        elif step in (600, 1400):
            own_server.start()
        time.sleep(0.002)
    assert tracker.close(60) == 0
    store = look(own_server.url, "crash")
    assert len(store.runs) == 2
    points = store.points(store.children[0], "train/loss")
    assert points == [(step, 1.0 * step) for step in range(1, 2001)]


KILLED = """
import sys
from pathlib import Path
from sweeps.tracking import MlflowTracker
tracker = MlflowTracker(Path(sys.argv[1]), sys.argv[2], "killed", "s")
tracker.sweep_started({}, {}, [])
for number in range(4):
    tracker.trial_started(number, f"trial-{number}", {"adapter.r": 8}, {}, 1_700_000_000_000)
step = 0
while True:
    step += 1
    for number in range(4):
        tracker.trial_progress(number, {"train/loss": 1 / step}, step, 1_700_000_000_000 + step)
    print(step, flush=True)
    if step >= 100:  # slow down, so that the kill finds the drain thread at work
        import time; time.sleep(0.002)
"""


def test_a_killed_driver_loses_and_repeats_nothing(tmp_path, database, look) -> None:
    outbox = tmp_path / "outbox.db"
    command = [sys.executable, "-c", KILLED, str(outbox), database]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as driver:
        assert driver.stdout is not None
        printed = 0
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            printed = int(driver.stdout.readline())
            if printed >= 100 and printed % 50 == 0 and _delivered_something(database):
                break
        driver.send_signal(signal.SIGKILL)
        printed = max([printed, *map(int, driver.stdout.read().split())])
    assert Outbox(outbox).pending() > 0
    assert deliver_pending(outbox, database, "killed", "s") == 0
    store = look(database, "killed")
    assert sorted(store.children) == [0, 1, 2, 3]
    for child in store.children.values():
        points = store.points(child, "train/loss")
        steps = [step for step, _ in points]
        assert steps == list(range(1, len(steps) + 1))
        assert len(steps) >= printed
        assert points == [(step, pytest.approx(1 / step)) for step in steps]
        assert child.info.status == "RUNNING"


def _delivered_something(database: str) -> bool:
    from mlflow import MlflowClient

    client = MlflowClient(database)
    experiment = client.get_experiment_by_name("killed")
    return experiment is not None and len(client.search_runs([experiment.experiment_id])) > 2


def test_a_resumed_trial_goes_on_in_its_run(tmp_path, database, look) -> None:
    outbox = tmp_path / "outbox.db"
    first = MlflowTracker(outbox, database, "resumed", "s")
    first.sweep_started({"seed": 7}, {}, [])
    first.trial_started(0, "trial-0000", {"adapter.r": 8, "host": "a"}, {}, T0)
    for step in (1, 2, 3):
        first.trial_progress(0, {"train/loss": 1.0 * step}, step, T0 + step)
    first.sweep_ended("FAILED", {}, {}, [])
    assert first.close(60) == 0
    again = MlflowTracker(outbox, database, "resumed", "s")
    again.sweep_started({"seed": 7}, {}, [])
    again.trial_started(0, "trial-0000", {"adapter.r": 8, "host": "b"}, {}, T0 + 10)
    for step in (3, 4):  # step 3 is repeated from the checkpoint, later
        again.trial_progress(0, {"train/loss": 1.0 * step}, step, T0 + 10 + step)
    assert again.close(60) == 0
    store = look(database, "resumed")
    child = store.children[0]
    assert (store.parent.info.status, child.info.status) == ("RUNNING", "RUNNING")
    assert store.points(child, "train/loss") == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)]
    assert child.data.params == {"adapter.r": "8", "host": "a"}
    assert child.data.tags["changed.host"] == "b"


def test_an_end_that_is_told_again_adds_nothing(tmp_path, database, look) -> None:
    for launch in range(3):  # a driver dies after it told an end; the next one tells it again
        tracker = MlflowTracker(tmp_path / "outbox.db", database, "told-again", "sweep")
        tracker.sweep_started({}, {}, [])
        if launch == 0:
            tracker.trial_started(0, "trial-0000", {}, {}, T0)
        tracker.trial_progress(0, {"validation/loss": 2.5}, 9, T0)
        assert tracker.has_ended(0) == (launch > 0)
        tracker.trial_ended(0, "FINISHED", {"samples": 72.0}, {}, [], T0 + launch)
        assert tracker.close(60) == 0
    store = look(database, "told-again")
    assert store.points(store.children[0], "validation/loss") == [(9, 2.5)]
    assert store.points(store.children[0], "samples") == [(0, 72.0)]


def test_datasets_are_inputs_of_their_runs_told_once(tmp_path, database, look) -> None:
    file = "/data/rows.jsonl"
    rows = Dataset("rows.jsonl (train)", "0123456789abcdef", file, False, "training", 1200)
    held_out = Dataset("sst2 (validation)", "f" * 16, "glue/sst2", True, "validation")
    for _ in range(2):  # the second launch tells it again
        tracker = MlflowTracker(tmp_path / "outbox.db", database, "inputs", "sweep")
        tracker.sweep_started({}, {}, [], [rows, held_out])
        tracker.trial_started(0, "trial-0000", {}, {}, T0)
        tracker.trial_ended(0, "FINISHED", {}, {}, [], T0, [rows])
        assert tracker.close(60) == 0
    store = look(database, "inputs")
    found = {
        run.info.run_name: {
            (i.dataset.name, i.dataset.digest, i.dataset.profile, i.tags[0].value)
            for i in run.inputs.dataset_inputs
        }
        for run in store.runs
    }
    of_rows = ("rows.jsonl (train)", "0123456789abcdef", '{"num_rows": 1200}', "training")
    assert found["trial-0000"] == {of_rows}
    assert found["sweep"] == {of_rows, (held_out.name, held_out.digest, "{}", "validation")}
    sources = {
        (i.dataset.source_type, i.dataset.source)
        for run in store.runs
        for i in run.inputs.dataset_inputs
    }
    assert sources == {
        ("local", '{"uri": "/data/rows.jsonl"}'),
        ("hf", '{"path": "glue/sst2"}'),
    }
    assert [len(run.inputs.dataset_inputs) for run in store.runs].count(1) == 1


def test_long_and_odd_values(tmp_path, database, look) -> None:
    tracker = MlflowTracker(tmp_path / "outbox.db", database, "odd", "s")
    params = {"data.prompt_template": "x" * 7000} | {f"p{i}": i for i in range(250)}
    tracker.trial_started(0, "trial-0000", params, {f"t{i}": "1" for i in range(120)}, T0)
    metrics = {f"m/{i}": float(i) for i in range(2100)}
    tracker.trial_progress(0, {**metrics, "train/loss": float("nan")}, 1, T0)
    assert tracker.close(60) == 0
    store = look(database, "odd")
    child = store.children[0]
    assert len(child.data.params) == 251
    assert len(child.data.params["data.prompt_template"]) == 6000
    assert len(child.data.metrics) == 2100
    assert child.data.tags["not_finite.train/loss"] == "nan at step 1"
    assert store.artifacts(child) == {"config/params.json"}
    full = store.client.download_artifacts(child.info.run_id, "config/params.json", str(tmp_path))
    assert json.loads(Path(full).read_text()) == params


def test_what_mlflow_refuses_is_set_aside_and_its_neighbours_go_on(
    tmp_path, database, look, caplog
) -> None:
    tracker = MlflowTracker(tmp_path / "outbox.db", database, "refused", "s")
    tracker.trial_started(0, "trial-0000", PARAMS, {}, T0)
    tracker.trial_progress(0, {"train/loss": 1.0}, 1, T0)
    tracker.trial_progress(0, {"no such name!": 1.0}, 2, T0)
    tracker.trial_progress(0, {"train/loss": 3.0}, 3, T0)
    tracker.trial_ended(0, "FINISHED", {}, {}, [Artifact(tmp_path / "gone")], T0)
    with caplog.at_level(logging.ERROR):
        assert tracker.close(60) == 0
    store = look(database, "refused")
    assert store.points(store.children[0], "train/loss") == [(1, 1.0), (3, 3.0)]
    assert store.children[0].info.status == "FINISHED"
    letters = Outbox(tmp_path / "outbox.db").dead_letters()
    assert [(key, kind) for key, kind, _ in letters] == [("0", "progress"), ("0", "artifact")]
    assert "no such name!" in letters[0][2]
    assert "the artifact is gone" in letters[1][2]
    assert caplog.text.count("set aside") == 2


def test_names_that_mlflow_refuses_do_not_lose_the_rest(tmp_path, database, look) -> None:
    spec = TrialSpec.model_validate(
        {
            "model": "demo",
            "task": {"type": "causal_lm", "prompt": "{record} ", "response": "{sentence}"},
            "data": {"train": "demo", "validation": "demo"},
            "adapter": {"rank_pattern": {r"^model\.layers\.(0|1)\..*q_proj": 32, "v_proj": 4}},
        }
    )
    tracker = MlflowTracker(tmp_path / "outbox.db", database, "pattern", "s")
    tracker.trial_started(0, "trial-0000", flatten(spec), {}, T0)
    assert tracker.close(60) == 0
    assert Outbox(tmp_path / "outbox.db").dead_letters() == []
    store = look(database, "pattern")
    child = store.children[0]
    assert child.data.tags["sweep"] == "s"
    assert child.data.params["adapter.r"] == str(spec.adapter.r)
    assert child.data.params["adapter.rank_pattern.v_proj"] == "4"
    name = "adapter.rank_pattern._model_.layers_._0_1__.._q_proj"
    assert child.data.params[name] == "32"
    full = store.client.download_artifacts(child.info.run_id, "config/params.json", str(tmp_path))
    assert json.loads(Path(full).read_text()) == flatten(spec)


def test_mlflow_takes_every_fitted_name(tmp_path, database, look) -> None:
    odd = ["..", ".", "/etc", "a//b", "a/", "a/../b", "a\n", "é²:x", "a|b", "a*b", "n" * 999, "a_b"]
    tracker = MlflowTracker(tmp_path / "outbox.db", database, "names", "s")
    tracker.trial_started(0, "trial-0000", {name: i for i, name in enumerate(odd)}, {}, T0)
    tracker.trial_started(0, "trial-0000", {"n" * 999: "changed"}, {}, T0)
    assert tracker.close(60) == 0
    assert Outbox(tmp_path / "outbox.db").dead_letters() == []
    child = look(database, "names").children[0]
    assert sorted(map(int, child.data.params.values())) == list(range(len(odd)))
    assert "changed" in child.data.tags.values()


def test_a_trial_waits_for_artifacts_that_mlflow_refused(tmp_path, database) -> None:
    tracker = MlflowTracker(tmp_path / "outbox.db", database, "waits", "s")
    (tmp_path / "adapter.bin").write_bytes(b"1")
    for number, file in enumerate(["adapter.bin", "gone"]):
        tracker.trial_started(number, f"trial-{number:04d}", {}, {}, T0)
        tracker.trial_ended(number, "FINISHED", {}, {}, [Artifact(tmp_path / file)], T0)
    deadline = time.monotonic() + 60
    while Outbox(tmp_path / "outbox.db").pending() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [tracker.waits(number) for number in range(2)] == [False, True]
    assert tracker.close(60) == 0
    assert [tracker.waits(number) for number in range(2)] == [False, True]
    again = MlflowTracker(tmp_path / "outbox.db", database, "waits", "s")
    assert [again.waits(number) for number in range(2)] == [False, True]
    assert again.close(60) == 0


def test_a_trial_waits_for_artifacts_that_could_not_be_queued(tmp_path, database, caplog) -> None:
    tracker = MlflowTracker(tmp_path / "outbox.db", database, "full", "s")
    with closing(sqlite3.connect(tmp_path / "outbox.db")) as outbox:
        outbox.execute(
            "CREATE TRIGGER full BEFORE INSERT ON op WHEN NEW.kind = 'artifact' AND NEW.key = '1' "
            "BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END"
        )
    (tmp_path / "adapter.bin").write_bytes(b"1")
    with caplog.at_level(logging.ERROR):
        for number in range(2):
            artifacts = [Artifact(tmp_path / "adapter.bin")]
            tracker.trial_ended(number, "FINISHED", {}, {}, artifacts, T0)
    assert "disk is full" in caplog.text
    assert tracker.waits(1)
    assert not tracker.has_ended(1), "the next driver tells it again"
    assert tracker.close(60) == 0
    assert [tracker.waits(number) for number in range(2)] == [False, True]


def test_an_unreachable_server_is_told_once_and_without_its_password(tmp_path, caplog):
    uri = "http://ann:s3cret@127.0.0.1:9"  # nobody listens on the discard port
    tracker = MlflowTracker(tmp_path / "outbox.db", uri, "away", "s")
    with caplog.at_level(logging.DEBUG):
        tracker.sweep_started({}, {}, [])
        deadline = time.monotonic() + 30
        while "is away" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.05)
        assert tracker.close(0.1) == 1
    assert "MLflow at http://***@127.0.0.1:9 is away" in caplog.text
    assert caplog.text.count("is away") == 1
    assert "s3cret" not in caplog.text
    assert b"s3cret" not in (tmp_path / "outbox.db").read_bytes()


def test_two_sweeps_of_one_name_stay_apart_by_their_keys(tmp_path, database, look) -> None:
    for key in ("s-2025", "s-2026"):
        outbox = tmp_path / f"{key}.db"
        tracker = MlflowTracker(outbox, database, "namesakes", "s", sweep_key=key)
        tracker.trial_started(0, "trial-0000", {}, {}, T0)
        assert tracker.close(60) == 0
    assert len(look(database, "namesakes").runs) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("runs/mlflow.db", "e", "s"), "must be a URL"),
        (("http://host", "", "s"), "must not be empty"),
        (("http://host", "e", "it's"), "must not contain quotes"),
        (("postgresql://u:pw@db/mlflow", "e", "s"), r"postgresql://\*\*\*@db/mlflow is a database"),
    ],
)
def test_arguments_that_cannot_work_are_refused_at_once(tmp_path, arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        MlflowTracker(tmp_path / "outbox.db", *arguments)


def test_the_package_is_imported_and_fed_without_mlflow() -> None:
    code = """
import sys
sys.modules.update(dict.fromkeys(["mlflow", "torch", "ray"]))  # importing them fails
import sweeps.tracking, sweeps.tracking.ui
tracker = sweeps.tracking.NoTracker()
tracker.sweep_started({}, {}, [])
tracker.trial_started(number=0, run_name="t", params={}, tags={}, time_ms=0)
assert tracker.close(1) == 0
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_nothing_is_printed_when_a_store_is_laid_out(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from sweeps.tracking import MlflowTracker
folder = Path(sys.argv[1])
tracker = MlflowTracker(folder / "outbox.db", f"sqlite:///{folder / 'mlflow.db'}", "e", "s")
tracker.sweep_started({}, {}, [])
tracker.sweep_ended("FINISHED", {}, {}, [])
assert tracker.close(60) == 0
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, check=True, env=environment, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("", "")
