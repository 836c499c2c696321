"""The inline backend: one trial host in this process, no Ray; a debugger works in every trial."""

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from typing import Any

from peft_jobs import TrialSpec
from peft_jobs.activity import stage
from peft_jobs.engines import load_engine
from peft_jobs.errors import DeviceLost
from peft_jobs.host.job import Prepared
from peft_jobs.host.messages import Interrupted, Message, Report
from peft_jobs.host.trial_host import TrialHost
from sweeps.driver.driver import Driver
from sweeps.futures import future_of
from sweeps.study.point import Point

log = logging.getLogger(__name__)

TICK_SECONDS = 0.5
CLOSE_SECONDS = 60.0
DRAWING_SECONDS = 10.0
"""How long a stop waits for a point that is being drawn."""


class InlineBackend:
    """Runs the trials on one host."""

    def __init__(self, engine: str, options: dict[str, Any]) -> None:
        self._news = threading.Event()
        self._host = TrialHost(load_engine(engine, options), on_change=self._news.set)
        self._is_hung = False
        self._live: dict[int, tuple[int, int]] = {}
        """Of what runs, the attempt, and the last report that was taken."""
        self._drawing: Future[Point | None] | None = None
        """The next point, which a slow sampler draws in a thread of its own."""

    def prepare(
        self,
        spec: TrialSpec,
        variants: Sequence[TrialSpec],
        on_tick: Callable[[], object] = lambda: None,
        on_stage: Callable[[str], object] = lambda _: None,
    ) -> Prepared:
        """See `Engine.prepare`; `on_tick` is called about twice a second meanwhile,
        and `on_stage` is told what the work is at (`peft_jobs.activity`)."""
        texts = [variant.to_json() for variant in variants]

        def tick() -> None:
            on_stage(stage())
            on_tick()

        return self._host.prepare(spec.to_json(), texts, tick)

    def run(self, driver: Driver) -> None:
        """Run the sweep until the driver has nothing more to start, or is asked to stop."""
        while not driver.stop_requested:
            self._fill(driver)
            if not self._live and self._drawing is None:
                break
            self._news.wait(TICK_SECONDS)
            self._news.clear()
            driver.tick()
            for number, kind in driver.overdue():
                self._host.request_cancel(number, self._live[number][0], kind)
            self._take_all(driver)
            if self._hangs(driver):
                return
        if not driver.stop_requested:
            return
        if self._drawing is not None:  # what it writes is for the next launch to take up
            wait([self._drawing], DRAWING_SECONDS)
        self._host.close()
        while self._take_all(driver):  # their last checkpoints are among the last reports
            pass
        driver.leave_running()

    def close(self) -> None:
        self._host.close(0.0 if self._is_hung else CLOSE_SECONDS)

    def _hangs(self, driver: Driver) -> bool:
        """Whether the engine makes no step any more: only a new process gets beyond that."""
        limit, silent = driver.spec.resources.stall_seconds, self._host.silent_seconds()
        if limit is None or silent <= limit:
            return False
        driver.budget.fail(
            f"its engine has made no step for {silent:.0f} s (resources.stall_seconds)"
        )
        log.critical("the sweep ends, and its trials wait for the next launch")
        for number in list(driver.running):
            driver.interrupt(number)
        self._is_hung = True
        return True

    def _fill(self, driver: Driver) -> None:
        resources = driver.spec.resources
        slots = resources.max_concurrent or resources.slots
        while driver.has_room(slots):
            if self._drawing is None:
                thread = "sampler" if driver.study.is_slow else None
                self._drawing = future_of(driver.next_point, thread)
                self._drawing.add_done_callback(self._drawn)
            if not self._drawing.done():
                return
            point, self._drawing = self._drawing.result(), None
            if point is None:
                return
            assignment = driver.start(point)
            self._host.submit(assignment)
            self._live[assignment.trial] = (assignment.attempt, 0)

    def _drawn(self, drawing: "Future[Point | None]") -> None:
        """A point is news; that there is none now is not, or the loop would turn without a pause
        and take the interpreter from the trials that still run."""
        if drawing.exception() is not None or drawing.result() is not None:
            self._news.set()

    def _take_all(self, driver: Driver) -> bool:
        """Take one message of every trial that has one; False if none has."""
        taken = False
        for number, (attempt, seq) in list(self._live.items()):
            message = self._poll(driver, number, attempt, seq)
            if message is not None:
                taken = True
                self._take(driver, number, attempt, message)
        return taken

    def _poll(self, driver: Driver, number: int, attempt: int, seq: int) -> Message | None:
        """`TrialHost.poll`; without the device, which only a new process gets back, the sweep
        ends and its trials wait."""
        try:
            return self._host.poll(number, attempt, seq)
        except DeviceLost as error:
            driver.budget.fail(str(error))
            return Interrupted()

    def _take(self, driver: Driver, number: int, attempt: int, message: Message) -> None:
        if isinstance(message, Report):
            self._live[number] = (attempt, message.seq)
            self._news.set()  # the next poll acknowledges this one
        else:
            del self._live[number]
        if (kind := driver.take(number, message)) is not None:
            self._host.request_cancel(number, attempt, kind)
