"""How often checkpoints are left: what they cost the thread that trains is held down."""

import threading
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from peft_jobs.device.host_copies import HostCopies
from peft_jobs.host.checkpoint import CheckpointState, read
from peft_jobs.host.job import Job
from peft_jobs.training import checkpoints
from peft_jobs.training.checkpoints import MAX_SHARE, Pace, Saver
from peft_jobs.training.training_state import parse, write_tensors

SPEC = "ab" * 32


class Costly(HostCopies):
    """Copies that took so long."""

    seconds = 3.0  # type: ignore[assignment]


def state(step: int) -> CheckpointState:
    return CheckpointState(spec=SPEC, step=step, samples=step, tokens=step)


def job_in(folder: Path, spec: Any) -> Job:
    return Job(0, 1, spec, folder, None, threading.Condition())


def test_checkpoints_take_a_small_share_of_the_time_of_all_trials_together(
    tmp_path: Path, trial: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(checkpoints, "time", SimpleNamespace(monotonic=lambda: now))
    pace = Pace()
    for number in (1, 4):
        pace.num_trials = number
        saver = Saver(job_in(tmp_path / str(number), trial()), 60.0, pace=pace)
        taken = []
        for second in range(2000):
            now += 1.0
            if saver.due():
                saver.begin(state(second), lambda: Costly({"a": torch.ones(1)}))
                assert not saver.due(), "one at a time"
                assert saver.take() is not None
                taken.append(second + 1)
        assert taken[0] == 60, "nothing is known of the first one's cost"
        gaps = {after - before for before, after in pairwise(taken)}
        assert gaps == {100 * number}, "3 s are 3 % of 100 s"
        assert number * len(taken) * 3.0 <= (MAX_SHARE + 0.003) * 2000


def test_cheap_checkpoints_come_as_often_as_asked_for(
    tmp_path: Path, trial: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(checkpoints, "time", SimpleNamespace(monotonic=lambda: now))
    saver, taken = Saver(job_in(tmp_path, trial()), 60.0), []
    for second in range(300):
        now += 1.0
        if saver.due():
            saver.begin(state(second), lambda: HostCopies({"a": torch.ones(1)}))
            saver.take()
            taken.append(second + 1)
    assert taken == [60, 120, 180, 240, 300]


def test_a_checkpoint_holds_what_was_there_when_it_was_begun(tmp_path: Path, trial: Any) -> None:
    saver, value = Saver(job_in(tmp_path, trial()), 0.0), torch.ones(3)
    saver.begin(state(1), lambda: HostCopies({"a": value, "b": torch.arange(6).view(2, 3).T}))
    value.zero_()
    path = saver.take()
    assert path is not None
    held = parse(read(path, SPEC).tensors)
    assert held["a"].tolist() == [1, 1, 1]
    assert held["b"].tolist() == [[0, 3], [1, 4], [2, 5]]


def test_what_the_disk_refuses_is_the_disks_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_tensors({"a": torch.ones(1)}, tmp_path / "missing" / "tensors")
