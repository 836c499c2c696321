"""The inline backend: one trial host in this process, no Ray; a debugger works in every trial."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

from peft_jobs import Progress, TrialResult, TrialSpec
from peft_jobs.engines import load_engine
from peft_jobs.errors import DeviceLost
from peft_jobs.host.job import Prepared
from peft_jobs.host.messages import Assignment
from peft_jobs.host.trial_host import Message, TrialHost
from sweeps.driver.driver import Driver

TICK_SECONDS = 0.5


class InlineBackend:
    """Runs the trials on one host."""

    def __init__(self, engine: str, options: dict[str, Any]) -> None:
        self._news = threading.Event()
        self._host = TrialHost(load_engine(engine, options), on_change=self._news.set)
        self._live: dict[int, tuple[Assignment, int]] = {}
        """What runs, and the last message that was taken of it."""

    def prepare(
        self,
        spec: TrialSpec,
        variants: Sequence[TrialSpec],
        on_tick: Callable[[], object] = lambda: None,
    ) -> Prepared:
        """See `Engine.prepare`; `on_tick` is called about twice a second meanwhile."""
        texts = [variant.to_json() for variant in variants]
        return self._host.prepare(spec.to_json(), texts, on_tick)

    def run(self, driver: Driver) -> None:
        """Run the sweep until the driver has nothing more to start, or is interrupted."""
        while not driver.interrupted:
            self._fill(driver)
            if not self._live:
                return
            self._news.wait(TICK_SECONDS)
            self._news.clear()
            driver.tick()
            self._take_all(driver)
        self._host.close()
        while self._take_all(driver):  # their last checkpoints are among the last reports
            pass
        for number in list(driver.running):
            driver.interrupt(number)

    def close(self) -> None:
        self._host.close()

    def _fill(self, driver: Driver) -> None:
        resources = driver.spec.resources
        slots = resources.max_concurrent or resources.slots
        while driver.has_room(slots) and (assignment := driver.ask()) is not None:
            self._host.submit(
                assignment.trial,
                assignment.attempt,
                assignment.spec_json,
                assignment.directory,
                assignment.checkpoint,
            )
            self._live[assignment.trial] = (assignment, 0)

    def _take_all(self, driver: Driver) -> bool:
        """Take one message of every trial that has one; False if none has."""
        taken = False
        for number, (assignment, seq) in list(self._live.items()):
            message = self._poll(driver, number, assignment.attempt, seq)
            if message is not None:
                taken = True
                self._take(driver, assignment, message)
        return taken

    def _poll(self, driver: Driver, number: int, attempt: int, seq: int) -> Message | None:
        """`TrialHost.poll`; without the device, which only a new process gets back, the sweep
        ends and its trials wait."""
        try:
            return self._host.poll(number, attempt, seq)
        except DeviceLost as error:
            driver.failed, driver.stop_reason = True, str(error)
            return {"interrupted": True}

    def _take(self, driver: Driver, assignment: Assignment, message: Message) -> None:
        number, attempt = assignment.trial, assignment.attempt
        if "progress" in message:
            if not driver.report(number, Progress.model_validate(message["progress"])):
                self._host.request_cancel(number, attempt, "weak")
            self._live[number] = (assignment, message["seq"])
            self._news.set()  # the next poll acknowledges this one
            return
        del self._live[number]
        if "result" in message:
            driver.end(number, TrialResult.model_validate(message["result"]))
        else:
            driver.interrupt(number)
