"""Threads as they are given, and fewer of them on a crowded machine."""

import os
import sys
import time
from collections.abc import Iterator

import pytest
import torch

from peft_jobs.activity import moved
from peft_jobs.device.threads import Threads
from tests.support.busy_cores import busy_cores

MOST = 4


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_none_leaves_the_number_as_it_is_and_a_number_holds_from_the_next_use() -> None:
    torch.set_num_threads(3)
    Threads(None).use()
    assert torch.get_num_threads() == 3
    threads = Threads(2)
    threads.use()
    assert torch.get_num_threads() == 2
    threads.change(1)
    assert torch.get_num_threads() == 2
    with threads.while_trials_run():
        moved()
        assert torch.get_num_threads() == 2, "those that do not yield follow nothing"
    threads.use()
    assert torch.get_num_threads() == 1


def test_yielding_threads_follow_a_new_limit_at_the_next_move() -> None:
    threads = Threads(MOST, yields=True)
    with threads.while_trials_run():
        moved()
        assert torch.get_num_threads() == MOST
        threads.change(2)
        moved()
        assert torch.get_num_threads() == 2
    torch.set_num_threads(3)
    moved()
    assert torch.get_num_threads() == 3, "outside, nothing is changed"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux tells what threads wait")
def test_work_on_a_crowded_machine_goes_on_with_fewer_threads() -> None:
    numbers = torch.rand(1000, 1000)
    crowd = busy_cores(2 * (os.cpu_count() or 1))
    with crowd, Threads(MOST, yields=True).while_trials_run():
        moved()
        deadline = time.monotonic() + 60.0
        while torch.get_num_threads() == MOST and time.monotonic() < deadline:
            numbers.add(1.0).sum()
            moved()
    assert torch.get_num_threads() < MOST
