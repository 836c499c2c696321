"""Threads follow the cores that are free, and are raised again with patience."""

from peft_jobs.device.free_cores import FIRST_CALM, MOST_CALM, FreeCores

MOST = 4


class Machine:
    """A clock, what threads have waited and cores have idled, all told by the test."""

    def __init__(self) -> None:
        self.now, self.idle, self.waited, self.reads = 0.0, 0.0, {"1": 7.0}, 0
        self.cores = FreeCores(MOST, self._read, lambda: self.idle, lambda: self.now)
        self.cores.look()

    def _read(self) -> dict[str, float]:
        self.reads += 1
        return dict(self.waited)

    def second(self, waiting: float = 0.0, idle: float = 0.0) -> int:
        """The number of threads after a second in which so many have waited and cores idled."""
        self.now += 1.0
        self.idle += idle
        self.waited["1"] += waiting
        return self.cores.look()


def test_threads_that_wait_for_cores_are_given_up_at_once() -> None:
    machine = Machine()
    assert machine.second(waiting=0.4) == MOST
    assert machine.second(waiting=0.9) == MOST - 1
    assert machine.second(waiting=9.0) == 1
    assert machine.second(waiting=9.0) == 1


def test_idle_cores_are_taken_again_after_some_calm() -> None:
    machine = Machine()
    machine.second(waiting=3.0)
    assert [machine.second(idle=1.0) for _ in range(FIRST_CALM)] == [1, 2]
    assert [machine.second(idle=5.0) for _ in range(FIRST_CALM)] == [2, MOST]
    assert [machine.second(idle=5.0) for _ in range(FIRST_CALM)] == [MOST, MOST]


def test_a_second_without_idle_cores_begins_the_calm_anew() -> None:
    machine = Machine()
    machine.second(waiting=3.0)
    assert [machine.second(idle=idle) for idle in (1.0, 0.1, 1.0, 1.0)] == [1, 1, 1, 2]


def test_it_is_more_patient_each_time_that_it_was_too_early() -> None:
    machine, seconds = Machine(), []
    for _ in range(7):
        machine.second(waiting=3.0)
        seconds.append(1)
        while machine.second(idle=1.0) == 1:
            seconds[-1] += 1
    assert seconds == [FIRST_CALM, 4, 8, 16, MOST_CALM, MOST_CALM, MOST_CALM]
    machine.now += 60.0
    machine.second()
    machine.second(waiting=3.0)
    assert [machine.second(idle=1.0) for _ in range(FIRST_CALM)] == [1, 2]


def test_threads_that_began_within_a_window_do_not_count() -> None:
    machine = Machine()
    machine.waited["2"] = 100.0
    assert machine.second() == MOST


def test_many_steps_in_a_second_are_one_look() -> None:
    machine = Machine()
    for _ in range(1000):
        machine.now += 0.001
        machine.cores.look()
    assert machine.reads <= 3


def test_a_new_limit_holds_at_once() -> None:
    machine = Machine()
    machine.cores.limit(2)
    assert machine.second(idle=5.0) == machine.second(idle=5.0) == 2
