"""SimulatedEngine: trials with an analytic response surface, for testing everything above trials.

One thread steps all slots in turns: a run is deterministic. The surface has one optimum (rate 3e-3,
large rank, alpha = 2r, all-linear); the loss decays with the samples, and keyed noise is the seed.
"""

import logging
import math
import os
import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peft_jobs.activity import moved
from peft_jobs.errors import DataError, DeviceLost, Diverged, OutOfMemory, SpecError
from peft_jobs.host.checkpoint import CheckpointState, newest_whole, write
from peft_jobs.host.job import Inbox, Job, Prepared
from peft_jobs.host.result import Progress, State, TrialResult
from peft_jobs.spec import ADAPTERS, LoraSpec, TrialSpec
from peft_jobs.storage.files import sha256

log = logging.getLogger(__name__)

BASELINE_LOSS = 4.0
_PROVENANCE = dict.fromkeys(("model", "data", "template"), "simulated")
_TARGET_PENALTY = {"all-linear": 0.0, "attention+mlp": 0.0, "attention": 0.25}
_FAULTS = {"bug": RuntimeError, "data": DataError, "diverged": Diverged, "oom": OutOfMemory}


def final_loss(spec: TrialSpec) -> float:
    """The loss that a simulated trial approaches, without noise."""
    adapter, training = spec.adapter, spec.training
    if not isinstance(adapter, LoraSpec):  # any other method: as good as its name's place in line
        return 1.5 + 0.02 * list(ADAPTERS).index(adapter.method)
    rate = math.log10(training.learning_rate / 3e-3)
    scale = math.log2(adapter.lora_alpha / adapter.r) - 1
    penalty = _TARGET_PENALTY.get(str(adapter.target_modules), 0.4)
    return 1.0 + 0.8 * rate**2 + 1.2 / adapter.r + 0.1 * scale**2 + penalty + adapter.lora_dropout


def loss_at(spec: TrialSpec, samples: int) -> float:
    """Validation loss after `samples`: exponential decay to `final_loss` plus keyed noise."""
    seed = sha256(f"{spec.fingerprint()}/{spec.seed}")
    noise = random.Random(seed).gauss(0.0, 0.01)
    floor = final_loss(spec)
    return floor + (BASELINE_LOSS - floor) * math.exp(-samples / 300) + noise


@dataclass
class _Slot:
    job: Job
    total_steps: int
    step: int = 0
    resumed_from: int = 0
    saved_at: int = 0
    """Step of the last checkpoint; at the first one there is nothing to save."""
    rungs: list[int] = field(default_factory=list)

    @property
    def samples(self) -> int:
        return self.step * self.job.spec.training.samples_per_step


class SimulatedEngine:
    """`Engine` with `num_slots` slots; each optimizer step sleeps `step_seconds`.

    `faults` ends given trials at their first step: {number: "bug", "data", "diverged" or "oom"};
    "death" ends the whole process, "device" loses the device, "hang" stops the thread.
    "unmeasured" and "undefined" end nothing here: the evaluation leaves the loss out, or finds it
    to be NaN.
    A checkpoint is left at every rung, when asked, and when interrupted; a later attempt goes on
    from it, and reports the checkpoint's rung again. While the file `hold` is there, no trial goes
    further than three steps beyond a checkpoint.
    """

    def __init__(
        self,
        num_slots: int = 1,
        step_seconds: float = 0.0,
        train_rows: int = 1000,
        faults: dict[int, str] | None = None,
        hold: str | None = None,
    ) -> None:
        self.num_slots, self.step_seconds, self.train_rows = num_slots, step_seconds, train_rows
        self.faults = {int(number): fault for number, fault in (faults or {}).items()}
        self.hold = None if hold is None else Path(hold)
        self.steps_done = 0

    def prepare(self, spec: TrialSpec, variants: list[TrialSpec]) -> Prepared:
        for variant in variants:
            if getattr(variant.adapter, "target_modules", None) == "nothing":
                raise SpecError("adapter.target_modules: 'nothing' matches no module")
        return Prepared(
            train_rows=self.train_rows,
            baseline={"validation/loss": BASELINE_LOSS},
            slots=self.num_slots,
            provenance=_PROVENANCE,
        )

    def serve(self, inbox: Inbox) -> None:
        slots: list[_Slot] = []
        while True:
            while len(slots) < self.num_slots:
                job = inbox.take(block=not slots)
                if job is None:
                    break
                slots.append(self._start(job))
            if not slots:
                return
            moved()
            if self.step_seconds:
                time.sleep(self.step_seconds)
            any_moved = False
            for slot in list(slots):
                if not slot.job.decided:
                    continue
                any_moved = True
                self._advance(slot)
                if slot.job.ended:
                    slots.remove(slot)
            if not any_moved:
                self._await_change(slots, inbox)

    def use_threads(self, number: int) -> None:
        """Nothing: steps are computed in no time."""

    def status(self) -> dict[str, Any]:
        return {"engine": "simulated", "slots": self.num_slots, "steps": self.steps_done}

    def _await_change(self, slots: list[_Slot], inbox: Inbox) -> None:
        """Block until a slot may go on, or a job has come for a free one."""

        def changed() -> bool:
            if len(slots) < self.num_slots and (job := inbox.take(block=False)) is not None:
                slots.append(self._start(job))
            return any(slot.job.decided for slot in slots)

        slots[0].job.wait_until(changed)

    def _start(self, job: Job) -> _Slot:
        training = job.spec.training
        slot = _Slot(job, training.total_steps(self.train_rows))
        slot.rungs = list(job.spec.evaluation.rungs)
        if job.checkpoint is None:
            return slot
        attempts, spec = job.directory.parent, job.spec.fingerprint()
        if (found := newest_whole(job.checkpoint, attempts, spec)) is not None:
            slot.step = slot.saved_at = slot.resumed_from = found.state.step
            slot.rungs = list(found.state.rungs)
            # Their first time may have been lost with the host or the driver.
            for progress in found.state.reports:
                job.report(progress.model_copy(update={"checkpoint": str(found.path)}))
        return slot

    def _advance(self, slot: _Slot) -> None:
        job = slot.job
        seen: dict[str, Any] = {"step": slot.step, "samples": slot.samples}
        if job.cancelled is not None:
            if job.cancelled == "interrupted" and slot.step > slot.saved_at:
                self._save(slot, ())
            return job.end(job.stopped(**seen))
        if self._is_held(slot):
            return None
        fault = self.faults.get(job.trial)
        if fault == "device":
            raise DeviceLost("simulated device")
        try:
            if slot.step < slot.total_steps:
                slot.step += 1
                self.steps_done += 1
            if fault == "death":
                os._exit(1)
            if fault == "hang":
                time.sleep(10**6)
            if fault in _FAULTS:
                raise _FAULTS[fault](f"simulated {fault}")
            loss = loss_at(job.spec, slot.samples)
        except Exception as error:  # a trial's own errors end that trial, as in every engine
            return job.end(TrialResult.from_error(error, f"simulated: {error!r}", **seen))
        metrics = {"validation/loss": loss, "train/loss": loss}
        not_finite: tuple[str, ...] = ()
        if fault in ("unmeasured", "undefined"):
            del metrics["validation/loss"]
            not_finite = ("validation/loss",) if fault == "undefined" else ()
        if slot.step >= slot.total_steps:
            return job.end(self._complete(slot, metrics, not_finite))
        if slot.rungs and slot.samples >= slot.rungs[0]:
            progress = self._progress(slot, metrics, slot.rungs.pop(0))
            self._save(slot, (progress.model_copy(update={"not_finite": not_finite}),))
        elif job.checkpoint_requested:
            self._save(slot, ())
        return None

    def _is_held(self, slot: _Slot) -> bool:
        if self.hold is None or slot.job.checkpoint_requested or not slot.saved_at:
            return False
        return slot.step >= slot.saved_at + 3 and self.hold.exists()

    def _save(self, slot: _Slot, reports: tuple[Progress, ...]) -> None:
        """Leave a checkpoint, if the disk lets us, and make the reports, or one that names it."""
        job = slot.job
        job.checkpoint_requested = False
        state = CheckpointState(
            spec=job.spec.fingerprint(),
            step=slot.step,
            samples=slot.samples,
            tokens=slot.samples,
            rungs=tuple(slot.rungs),
            reports=reports,
        )
        path = None
        try:
            path = write(job.directory, state)
            slot.saved_at = slot.step
        except OSError as error:
            log.warning("no checkpoint at step %d: %s", slot.step, error)
        for progress in reports or ((self._progress(slot, {}, None),) if path else ()):
            named = {"checkpoint": None if path is None else str(path)}
            job.report(progress.model_copy(update=named))

    def _progress(self, slot: _Slot, metrics: dict[str, float], rung: int | None) -> Progress:
        return Progress(
            step=slot.step,
            samples=slot.samples,
            tokens=slot.samples,
            metrics=metrics,
            rung=rung,
        )

    def _complete(
        self, slot: _Slot, metrics: dict[str, float], not_finite: tuple[str, ...]
    ) -> TrialResult:
        spec = slot.job.spec
        return TrialResult(
            state=State.COMPLETE,
            metrics=metrics,
            not_finite=not_finite,
            step=slot.step,
            samples=slot.samples,
            tokens=slot.samples,
            seconds={"train": slot.step * self.step_seconds},
            memory={"peak_rss_bytes": 10**8 + 10**6 * _rank(spec)},
            trainable_parameters=1000 * _rank(spec),
            provenance={
                **_PROVENANCE,
                **self._process(),
                "resumed_from": slot.resumed_from,
            },
        )

    def _process(self) -> dict[str, Any]:
        """Where a trial ran and what that host had done by then: tests tell hosts apart."""
        devices = os.environ.get("CUDA_VISIBLE_DEVICES")
        return {"pid": os.getpid(), "visible_devices": devices, "steps_done": self.steps_done}


def _rank(spec: TrialSpec) -> int:
    """The rank, where the method has one."""
    return int(getattr(spec.adapter, "r", 1))
