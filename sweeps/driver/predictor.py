"""Predictor: what new points will take, from a process that imports torch in the driver's stead.

The process has no GPU and ends with the driver: it reads its questions from a pipe. Where it cannot
tell, trials are tried; that is said once.
"""

import json
import logging
import os
import select
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pydantic import ValidationError

from peft_jobs import TrialSpec
from peft_jobs.host.gpus import Device
from peft_jobs.host.job import Prepared
from peft_jobs.host.prediction import PREDICTED, Lengths, PredictedTrial
from sweeps.spec.sample_points import drawn_trials
from sweeps.study.study import SweepStudy

log = logging.getLogger(__name__)

ANSWER_SECONDS = 300.0
"""How long an answer is waited for: imports, and the steps of a large base on a busy machine."""
_PREDICTS = ("solo", "packed")
"""Engines whose trials can be predicted."""


class Predictor:
    """Of a sweep whose trials differ in adapter, quantization and training alone; one thread at a
    time may ask. The process starts with the first question."""

    def __init__(
        self, base: TrialSpec, device: Device, lengths: Lengths, among: Sequence[TrialSpec]
    ) -> None:
        """`lengths` are of the rows of `base`; `among` are trials such as will be asked for."""
        self._base = base
        self._asked = {
            "device": device.model_dump(mode="json"),
            "lengths": lengths.model_dump(mode="json"),
            "among": [trial.model_dump(mode="json") for trial in among],
        }
        self._process: subprocess.Popen[str] | None = None
        self._is_closed = self._has_told = False

    def of(self, spec: TrialSpec) -> PredictedTrial | None:
        """What a trial will take; None where that cannot be told."""
        seen = ("model", "task", "data")
        if any(getattr(spec, name) != getattr(self._base, name) for name in seen):
            return self._untold("trials on another base or other data are not predicted")
        if self._is_closed:
            return None
        try:
            answer = self._answer(spec.to_json())
        except OSError as error:
            return self._untold(f"its process does not answer: {error}")
        try:
            return PredictedTrial.model_validate_json(answer)
        except ValidationError:
            return self._untold(answer.strip() or "its process has ended")

    def close(self) -> None:
        """End the process; who waits for an answer gets None."""
        self._is_closed = True
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _answer(self, line: str) -> str:
        """The line that comes for one; "" if the process ends. Raises OSError, and ends the process
        where it takes too long."""
        if self._process is None:
            self._process = _started()
            line = f"{json.dumps(self._asked)}\n{line}"
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{line}\n")
        process.stdin.flush()
        if not select.select([process.stdout], [], [], ANSWER_SECONDS)[0]:
            process.kill()
            raise TimeoutError(f"no answer in {ANSWER_SECONDS:g} s")
        return process.stdout.readline()

    def _untold(self, why: str) -> PredictedTrial | None:
        level = logging.DEBUG if self._has_told else logging.WARNING
        log.log(level, "what a trial takes cannot be predicted, so it is tried: %s", why)
        self._has_told = True
        return None


def _started() -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "peft_jobs.prediction"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        start_new_session=True,  # an interruption is for the driver
    )


@contextmanager
def predictions(study: SweepStudy, prepared: Prepared) -> Iterator[None]:
    """A block in which new points of the study are predicted, where something follows from it: on
    a GPU, and where a constraint is on what can be told beforehand (PREDICTED)."""
    spec, device, lengths = study.spec, prepared.device, prepared.lengths
    is_asked = any(name in PREDICTED for name in spec.constraints)
    if (
        device is None
        or lengths is None
        or spec.resources.engine not in _PREDICTS
        or not (device.kind == "cuda" or is_asked)
    ):
        yield
        return
    predictor = Predictor(spec.trial, device, lengths, drawn_trials(spec))
    study.use_predictions(predictor.of)
    try:
        yield
    finally:
        predictor.close()
