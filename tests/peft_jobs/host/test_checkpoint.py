"""Checkpoints on disk: whole or not there, small, and never the reason why a trial fails."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from peft_jobs import faults
from peft_jobs.engines.simulated import SimulatedEngine
from peft_jobs.engines.solo.solo_engine import SoloEngine
from peft_jobs.errors import Damaged
from peft_jobs.host.checkpoint import STATE, TENSORS, CheckpointState, newest_whole, read, write
from peft_jobs.host.messages import Assignment, Interrupted
from peft_jobs.host.trial_host import TrialHost
from tests.support.repository import REPOSITORY

SPEC = "ab" * 32


def state(step: int, spec: str = SPEC) -> CheckpointState:
    return CheckpointState(spec=spec, step=step, samples=8 * step, tokens=step, losses=(0.1, 1e-17))


def holding(content: bytes) -> Callable[[Path], object]:
    """Writes a file of tensors with this in it."""
    return lambda path: path.write_bytes(content)


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = write(tmp_path, state(123), holding(b"tensors"))
    assert path == tmp_path / "checkpoints" / "step-00000123"
    found = read(path, SPEC)
    assert found.tensors == b"tensors"
    assert found.state.model_copy(update={"tensors": None}) == state(123)
    assert write(tmp_path, state(123), holding(b"other")) == path
    assert read(path, SPEC).tensors == b"other"
    assert read(write(tmp_path, state(4)), SPEC).tensors == b""
    assert [entry.name for entry in path.parent.iterdir() if entry.name.startswith(".")] == []


@pytest.mark.parametrize("damage", [flip, truncate, empty, os.remove])
@pytest.mark.parametrize("name", [STATE, TENSORS])
def test_a_damaged_checkpoint_is_noticed_and_the_one_before_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None], name: str
) -> None:
    first, second = tmp_path / "attempts" / "1", tmp_path / "attempts" / "2"
    write(first, state(1), holding(b"one"))
    write(first, state(2), holding(b"two"))
    write(second, state(3), holding(b"three" * 100))
    write(second, state(9), holding(b"beyond"))
    named = second / "checkpoints" / "step-00000003"
    damage(named / name)
    with pytest.raises(Damaged):
        read(named, SPEC)
    found = newest_whole(named, tmp_path / "attempts", SPEC)
    assert found is not None
    assert (found.state.step, found.tensors) == (2, b"two")
    assert f"{named} cannot be used" in caplog.text


def test_every_byte_of_a_checkpoint_is_guarded(tmp_path: Path) -> None:
    path = write(tmp_path, state(7), holding(b"some tensors"))
    whole = read(path, SPEC)
    for name in (STATE, TENSORS):
        content = (path / name).read_bytes()
        for place in range(len(content)):
            changed = bytearray(content)
            changed[place] ^= 1
            (path / name).write_bytes(changed)
            with pytest.raises(Damaged):
                read(path, SPEC)
        (path / name).write_bytes(content)
    assert read(path, SPEC) == whole


def test_a_foreign_or_missing_checkpoint_is_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    attempts = tmp_path / "attempts"
    foreign = write(attempts / "1", state(5, spec="cd" * 32))
    assert newest_whole(foreign, attempts, SPEC) is None
    assert "it belongs to a trial with another spec" in caplog.text
    assert "the trial starts at its first step" in caplog.text
    gone = attempts / "1" / "checkpoints" / "step-00000006"
    assert newest_whole(gone, attempts, SPEC) is None
    assert "No such file or directory" in caplog.text
    assert newest_whole(tmp_path / "other" / "name", attempts, SPEC) is None
    own = write(attempts / "2", state(4))
    found = newest_whole(gone, attempts, SPEC)
    assert found is not None
    assert found.path == own


KILLED = """
import sys
from pathlib import Path
from peft_jobs.host.checkpoint import CheckpointState, write
for step in (1, 2, 3):
    state = CheckpointState(spec="ab" * 32, step=step, samples=step, tokens=step)
    print(write(Path(sys.argv[1]), state, lambda path: path.write_bytes(b"x" * 10000)), flush=True)
"""


@pytest.mark.parametrize(("point", "left"), [("checkpoint.writing", 1), ("checkpoint.written", 2)])
def test_a_kill_leaves_a_whole_checkpoint_or_none(tmp_path: Path, point: str, left: int) -> None:
    fault = {"point": point, "nth": 2, "action": "kill", "marker": str(tmp_path / "marker")}
    directory = tmp_path / "attempts" / "1"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(directory)],
        cwd=REPOSITORY,
        env=os.environ | {faults.VARIABLE: json.dumps(fault)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == -9, done.stderr
    assert (tmp_path / "marker").exists()
    names = sorted(path.name for path in (directory / "checkpoints").glob("step-*"))
    assert names == [f"step-{n:08d}" for n in range(1, left + 1)]
    named = directory / "checkpoints" / "step-00000002"
    found = newest_whole(named, tmp_path / "attempts", SPEC)
    assert found is not None
    assert found.state.step == left


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> SoloEngine:
    return SoloEngine(str(tmp_path_factory.mktemp("cache")), threads=1, checkpoint_seconds=0)


@pytest.fixture
def spec(trial: Any, rows_path: Path) -> Any:
    return trial(
        {
            "quantization.scheme": "nf4",
            "adapter.r": 4,
            "adapter.lora_dropout": 0.1,
            "task": {"type": "causal_lm", "prompt": "{q}", "response": "{a}"},
            "data.train": {"path": str(rows_path)},
            "data.validation": 0.2,
            "training.learning_rate": 1e-2,
            "training.max_steps": 8,
            "evaluation.rungs": [16, 40],
        }
    )


def test_a_checkpoint_holds_adapter_and_moments_and_nothing_of_the_base(
    engine: SoloEngine, listen: Any, spec: Any, tmp_path: Path
) -> None:
    one = listen(engine, tmp_path)
    result = one.run(spec)
    parameters = result.trainable_parameters
    for path in one.checkpoints():
        assert sorted(file.name for file in path.iterdir()) == [STATE, TENSORS]
        tensors = load_file(path / TENSORS)
        assert all("lora_" in name for name in tensors)
        by_kind: dict[str, int] = {}
        for name, value in tensors.items():
            kind = name.partition("/")[0] + "/" + name.rpartition("/")[2] * ("optimizer" in name)
            by_kind[kind] = by_kind.get(kind, 0) + value.size
            assert str(value.dtype) == "float32"
        modules = by_kind.pop("optimizer/step")
        assert by_kind == {
            "model/": parameters,
            "optimizer/exp_avg": parameters,
            "optimizer/exp_avg_sq": parameters,
        }
        assert modules == 28  # A and B of seven layers in each of two blocks
        assert (path / TENSORS).stat().st_size < 3 * 4 * parameters + 20_000
    content = json.loads((one.checkpoints()[1] / STATE).read_text())
    assert content["state"]["spec"] == spec.fingerprint()
    assert [report["rung"] for report in content["state"]["reports"]] == [16]


@pytest.mark.parametrize("damage", [flip, truncate, os.remove])
def test_a_trial_with_a_damaged_checkpoint_goes_on_from_the_one_before(
    engine: SoloEngine,
    listen: Any,
    spec: Any,
    tmp_path: Path,
    damage: Callable[[Path], None],
) -> None:
    first = listen(engine, tmp_path)
    unbroken = first.run(spec)
    damage(first.checkpoints()[4] / TENSORS)
    again = listen(engine, tmp_path)
    result = again.run(spec, 2, first.checkpoints()[4])
    assert result.metrics == unbroken.metrics
    assert result.provenance["resumed_from"] == 4
    assert [path.name for path in again.checkpoints(2)] == [f"step-{n:08d}" for n in (5, 6, 7)]
    log = (tmp_path / "attempts" / "2" / "log.txt").read_text()
    assert f"{TENSORS}" in log
    assert "step-00000005 cannot be used" in log


def test_a_checkpoint_of_another_trial_or_model_starts_the_trial_anew(
    engine: SoloEngine, listen: Any, spec: Any, tmp_path: Path
) -> None:
    first = listen(engine, tmp_path / "first")
    unbroken = first.run(spec)
    other = spec.with_params({"adapter.r": 8})
    foreign = listen(engine, tmp_path / "foreign")
    foreign.run(other)
    fresh = listen(engine, tmp_path / "fresh")
    result = fresh.run(spec, 1, foreign.checkpoints()[3])
    assert result.metrics == unbroken.metrics
    assert result.provenance["resumed_from"] == 0
    # The same spec, but a model whose layers have other shapes: as if the folder had been changed.
    path = foreign.checkpoints()[3]
    content = json.loads((path / STATE).read_text())["state"]
    tensors = (path / TENSORS).read_bytes()
    taken = {**content, "spec": spec.fingerprint()}
    claimed = write(tmp_path / "x", CheckpointState.model_validate(taken), holding(tensors))
    result = fresh.run(spec, 2, claimed)
    assert result.metrics == unbroken.metrics
    assert result.provenance["resumed_from"] == 0
    log = (tmp_path / "fresh" / "attempts" / "2" / "log.txt").read_text()
    assert "the trial trains other parameters now" in log


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB; a checkpoint of the tiny model is larger."""
    folder = tmp_path / "small"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a file system takes root")
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)  # a writer may still be at it


@pytest.mark.parametrize("free", [24, 0])
def test_a_trial_on_a_full_disk_trains_on_without_checkpoints(
    engine: SoloEngine, listen: Any, spec: Any, tmp_path: Path, small_disk: Path, free: int
) -> None:
    """`free` KiB hold a log, but no checkpoint; the adapter finds room at the end."""
    plain = listen(engine, tmp_path / "plain")
    unbroken = plain.run(spec)
    full = listen(engine, small_disk)
    ballast, directory = small_disk / "ballast", small_disk / "attempts" / "1"
    ballast.write_bytes(b"x" * (64 - free) * 1024)

    def make_room(progress: Any) -> None:
        if progress.step == 8:
            subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)

    full.on_report = make_room
    result = full.run(spec)
    assert result.error is None, result.traceback
    assert result.metrics == unbroken.metrics
    assert [p.rung for p in full.reports if p.rung is not None] == [16, 40]
    assert all(report.checkpoint is None for report in full.reports)
    assert list((directory / "checkpoints").iterdir()) == []
    assert (directory / "adapter" / "adapter_model.safetensors").stat().st_size > 24 * 1024
    if free:
        log = (directory / "log.txt").read_text()
        assert "no checkpoint at step 2: [Errno 28]" in log


FULL_DISK = """
import sys
from pathlib import Path
from peft_jobs.engines.simulated import SimulatedEngine
from peft_jobs.host.messages import Assignment, Report
from peft_jobs.host.trial_host import TrialHost
host, seq = TrialHost(SimulatedEngine()), 0
host.submit(Assignment(0, 1, Path(sys.argv[1]).read_text(), sys.argv[2]))
while isinstance(message := host.next_report(0, 1, seq), Report):
    seq = message.seq
    print(message.progress.model_dump_json())
"""


def test_a_disk_that_is_full_once_costs_one_checkpoint(tmp_path: Path, spec: Any) -> None:
    (tmp_path / "trial.json").write_text(spec.to_json())
    fault = {"point": "checkpoint.writing", "action": "full_disk", "marker": str(tmp_path / "m")}
    directory = tmp_path / "attempts" / "1"
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path / "trial.json"), str(directory)],
        cwd=REPOSITORY,
        env=os.environ | {faults.VARIABLE: json.dumps(fault)},
        capture_output=True,
        text=True,
        check=True,
    )
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    path = directory / "checkpoints" / "step-00000005"
    assert [(r["rung"], r["checkpoint"]) for r in reports] == [(16, None), (40, str(path))]
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    assert "No space left on device" in done.stderr


def test_simulated_trials_leave_checkpoints_when_asked_and_when_interrupted(
    tmp_path: Path, spec: Any
) -> None:
    whole_spec = spec.with_params({"training.max_steps": 200, "evaluation.rungs": [800]})
    host = TrialHost(SimulatedEngine(step_seconds=0.01))
    host.submit(Assignment(0, 1, whole_spec.to_json(), str(tmp_path / "attempts" / "1")))
    host.checkpoint(0, 1)
    asked = host.next_report(0, 1, 0)
    assert asked is not None
    assert (asked.progress.rung, asked.progress.metrics) == (None, {})
    assert Path(asked.progress.checkpoint, STATE).is_file()
    assert host.poll(0, 1, asked.seq) is None
    while host.status()["steps"] < 30:
        pass
    assert host.close()
    last = host.poll(0, 1, asked.seq)
    assert last is not None
    step = last.progress.step
    assert 30 <= step < 100
    assert host.poll(0, 1, last.seq) == Interrupted()

    other = TrialHost(SimulatedEngine())
    named = last.progress.checkpoint
    flip(Path(named) / STATE)
    directory = tmp_path / "attempts" / "2"
    other.submit(Assignment(0, 2, whole_spec.to_json(), str(directory), named))
    rung = other.next_report(0, 2, 0)
    assert rung is not None
    assert (rung.progress.rung, rung.progress.step) == (800, 100)
    assert other.status()["steps"] == 100 - asked.progress.step
    shutil.rmtree(directory)
    assert other.close()
