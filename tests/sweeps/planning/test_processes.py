"""Steps that are tried in several processes: the same predictions, and nothing on stdout."""

import os
from pathlib import Path

import pytest

from peft_jobs.host.gpus import find_gpu
from sweeps.planning.planned_points import Rows, predicted
from sweeps.planning.processes import processes
from tests.support.fake_bases import LLAMA_8B, spec_on, write_config


def told(_: int) -> int:
    os.write(1, b"told")
    return os.getpid()


def test_processes_predict_what_one_does(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    base = write_config(tmp_path, LLAMA_8B | {"num_hidden_layers": 2})
    specs = [
        spec_on(base, adapter={"method": "lora", "r": r, "lora_dropout": dropout})
        for r in (2, 4, 8)
        for dropout in (0.0, 0.1)
    ]
    device, rows = find_gpu("L4"), Rows(100, 10, 64, 30.0, "exact")
    here = predicted(specs, device, rows)
    with processes(2) as mapped:
        assert predicted(specs, device, rows, mapped=mapped) == here
        assert os.getpid() not in set(mapped(told, range(4)))
    caught = capfd.readouterr()
    assert "told" not in caught.out
    assert caught.err.count("told") == 4


def test_one_process_is_this_one() -> None:
    with processes(1) as mapped:
        assert list(mapped(told, range(2))) == [os.getpid()] * 2
