"""The inline backend: one trial host in this process, no Ray; a debugger works in every trial."""

import threading
from collections.abc import Sequence
from typing import Any

from peft_jobs import Progress, TrialResult, TrialSpec
from peft_jobs.engines import load_engine
from peft_jobs.host import Message, TrialHost
from peft_jobs.job import Prepared
from sweeps.driver import Assignment, Driver


class InlineBackend:
    """Runs up to `slots` trials at a time on one host."""

    def __init__(self, engine: str, options: dict[str, Any], slots: int = 1) -> None:
        self._slots = slots
        self._news = threading.Event()
        self._host = TrialHost(load_engine(engine, options), on_change=self._news.set)

    def prepare(self, spec: TrialSpec, variants: Sequence[TrialSpec]) -> Prepared:
        return self._host.prepare(spec.to_json(), [variant.to_json() for variant in variants])

    def run(self, driver: Driver) -> None:
        """Run the sweep until the driver has nothing more to start, or KeyboardInterrupt."""
        live: dict[int, tuple[Assignment, int]] = {}
        try:
            while True:
                self._fill(driver, live)
                if not live:
                    return
                self._news.wait()
                self._news.clear()
                for number, (assignment, seq) in list(live.items()):
                    message = self._host.poll(number, assignment.attempt, seq)
                    if message is not None and not self._take(driver, assignment, message, live):
                        del live[number]
        except KeyboardInterrupt:
            driver.interrupted = True
            self._host.close()
            for number in list(driver.running):
                driver.interrupt(number)

    def close(self) -> None:
        self._host.close()

    def _fill(self, driver: Driver, live: dict[int, tuple[Assignment, int]]) -> None:
        while len(live) < self._slots and (assignment := driver.ask()) is not None:
            self._host.submit(
                assignment.trial,
                assignment.attempt,
                assignment.spec_json,
                assignment.directory,
                assignment.checkpoint,
            )
            live[assignment.trial] = (assignment, 0)

    def _take(
        self,
        driver: Driver,
        assignment: Assignment,
        message: Message,
        live: dict[int, tuple[Assignment, int]],
    ) -> bool:
        """Hand one message to the driver; False once the trial has ended."""
        number, attempt = assignment.trial, assignment.attempt
        if "result" in message:
            driver.end(number, TrialResult.model_validate(message["result"]))
            return False
        if "interrupted" in message:
            driver.interrupt(number)
            return False
        progress = Progress.model_validate(message["progress"])
        if not driver.report(number, progress):
            self._host.request_cancel(number, attempt, "weak")
        live[number] = (assignment, message["seq"])
        self._news.set()  # the next poll acknowledges this one
        return True
