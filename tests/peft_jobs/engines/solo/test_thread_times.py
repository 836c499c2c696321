"""Steps with fewer threads: what is tried, what it leaves, and what is kept."""

import json
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from peft_jobs.engines.packed.packed_engine import PackedEngine
from peft_jobs.engines.solo import thread_times
from peft_jobs.engines.solo.solo_engine import SoloEngine
from peft_jobs.engines.solo.thread_times import thread_seconds
from peft_jobs.host.job import Job
from peft_jobs.spec import TrialSpec


class Machine:
    """Steps take what `seconds` says of the number of threads; the first one of all takes 9 s."""

    def __init__(self, seconds: dict[int, float]) -> None:
        self.seconds, self.tried = seconds, list[int]()

    def measure(self) -> float:
        threads = torch.get_num_threads()
        self.tried.append(threads)
        return self.seconds[threads] if len(self.tried) > 1 else 9.0


@pytest.fixture(autouse=True)
def as_many_threads_as_before() -> Any:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_halves_are_tried_until_they_have_nothing_to_give(tmp_path: Path) -> None:
    torch.set_num_threads(8)
    machine = Machine({8: 1.0, 4: 1.0, 2: 1.5, 1: 4.0})
    found = thread_seconds(machine.measure, 8, "step", tmp_path)
    assert found == {8: 1.0, 4: 1.0, 2: 1.5, 1: 4.0}, "all threads are tried again beside each"
    assert machine.tried == [8, 4, 8, 2, 8, 1, 8]
    assert torch.get_num_threads() == 8
    torch.set_num_threads(6)
    machine = Machine({6: 0.5, 3: 0.5, 1: 5.0})
    assert thread_seconds(machine.measure, 6, "other", tmp_path).keys() == {6, 3, 1}
    torch.set_num_threads(4)
    machine = Machine({4: 1.0, 2: 1.9})
    assert thread_seconds(machine.measure, 4, "third", tmp_path).keys() == {4, 2}


def test_what_was_measured_here_is_not_measured_again(tmp_path: Path) -> None:
    torch.set_num_threads(2)
    machine = Machine({2: 1.0, 1: 1.1})
    found = thread_seconds(machine.measure, 2, ["base", 8], tmp_path)
    assert thread_seconds(lambda: pytest.fail("measured"), 2, ["base", 8], tmp_path) == found
    (entry,) = tmp_path.rglob("*.json")
    assert json.loads(entry.read_text()) == {"2": 1.0, "1": 1.1}
    thread_seconds(machine.measure, 2, ["base", 16], tmp_path)
    assert len(list(tmp_path.rglob("*.json"))) == 2


def test_no_number_whose_hosts_have_no_room_is_tried_nor_any_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(2)
    with monkeypatch.context() as patched:
        patched.setattr(thread_times, "MAX_SECONDS", 0.0)
        assert thread_seconds(lambda: 5.0, 2, "slow", tmp_path) == {2: 5.0}
    torch.set_num_threads(4)
    resident = psutil.Process().memory_info().rss
    little = type("Memory", (), {"available": int(2.5 * resident)})()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: little)
    machine = Machine({4: 1.0, 2: 1.0})
    assert thread_seconds(machine.measure, 4, "large", tmp_path).keys() == {4, 2}


def test_a_step_that_fails_is_no_failure_of_the_sweep(tmp_path: Path) -> None:
    def fails() -> float:
        raise RuntimeError("no such kernel")

    assert thread_seconds(fails, 2, "step", tmp_path) == {}
    assert not list(tmp_path.rglob("*.json"))


def trial(model: Path, folder: Path) -> TrialSpec:
    path = folder / "rows.jsonl"
    path.write_text('{"text": "the red cat"}\n' * 8)
    return TrialSpec.model_validate(
        {
            "model": str(model),
            "task": {"type": "causal_lm", "text": "{text}"},
            "data": {"train": str(path), "validation": str(path), "on_leak": "warn"},
            "training": {"max_steps": 2},
        }
    )


@pytest.mark.parametrize("kind", ["solo", "packed alone", "packed"])
def test_an_engine_tries_the_step_of_what_it_will_do_and_leaves_the_trials_as_they_were(
    tiny_llama_path: Path, tmp_path: Path, kind: str
) -> None:
    spec, cache = trial(tiny_llama_path, tmp_path), str(tmp_path / "cache")
    slots = {} if kind == "solo" else {"num_slots": 1 if kind == "packed alone" else 2}
    make: Any = SoloEngine if kind == "solo" else PackedEngine
    told = []
    for tries in (False, True):
        engine = make(cache, threads=2, try_threads=tries, **slots)
        prepared = engine.prepare(spec, [])
        assert (2 in prepared.thread_seconds) is tries
        assert all(seconds > 0 for seconds in prepared.thread_seconds.values())
        job = Job(0, 1, spec, tmp_path / str(tries), None, threading.Condition())
        engine.use_threads(1)
        solo = engine if kind == "solo" else engine.solo
        result = solo.run(job)
        assert torch.get_num_threads() == 1
        told.append(result.metrics["validation/loss"])
    assert told[0] == told[1]
    assert (Path(cache) / "threads").is_dir()
