"""What a trial tells while it runs (`Progress`) and when it has ended (`TrialResult`)."""

import math
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from peft_jobs.errors import DataError, Diverged, OutOfMemory, Refused
from peft_jobs.spec.memory_settings import LadderRung


class State(StrEnum):
    """How a trial stands; the names are Optuna's."""

    RUNNING = "RUNNING"
    COMPLETE = "COMPLETE"
    PRUNED = "PRUNED"
    FAIL = "FAIL"


class Kind(StrEnum):
    """Why a trial that did not complete ended."""

    WEAK = "weak"
    """The pruner's decision."""
    OUT_OF_MEMORY = "out_of_memory"
    DIVERGED = "diverged"
    REJECTED = "rejected"
    """A constraint of the space turned the point away before launch."""
    REFUSED = "refused"
    """The base, or PEFT, does not take the adapter: seen when it was put on the base."""
    TIMEOUT = "timeout"
    """It ran for longer than a trial of the sweep may."""
    DUPLICATE = "duplicate"
    """The same resolved trial was asked for before."""
    BUG = "bug"
    DATA = "data"
    LOST = "lost"
    """Its host died under it again and again."""

    @property
    def state(self) -> State:
        """PRUNED for what the sampler should learn from, FAIL for what says nothing of it."""
        return State.FAIL if self in (Kind.BUG, Kind.DATA, Kind.LOST) else State.PRUNED


def kind_of(error: BaseException) -> Kind:
    """The kind of an exception that ended a trial."""
    if isinstance(error, Diverged):
        return Kind.DIVERGED
    if isinstance(error, Refused):
        return Kind.REFUSED
    # torch.OutOfMemoryError is known by name: this half does not import torch.
    if isinstance(error, OutOfMemory | MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return Kind.OUT_OF_MEMORY
    return Kind.DATA if isinstance(error, DataError) else Kind.BUG


def split_finite(metrics: Mapping[str, float]) -> tuple[dict[str, float], tuple[str, ...]]:
    """The metrics that are finite, and the names of those that are NaN or infinite."""
    found = {name: value for name, value in metrics.items() if math.isfinite(value)}
    return found, tuple(name for name in metrics if name not in found)


def finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics as they came; `Diverged` if one of them is NaN or infinite."""
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise Diverged(f"{name} is {value}")
    return dict(metrics)


Metrics = Annotated[dict[str, float], AfterValidator(finite)]


class Progress(BaseModel):
    """One report of a running trial. Counts are totals since the trial's first step."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int = Field(ge=0)
    """Optimizer steps done."""
    samples: int = Field(ge=0)
    tokens: int = Field(ge=0)
    """Supervised tokens seen (classification: labelled rows)."""
    metrics: Metrics = {}
    not_finite: tuple[str, ...] = ()
    """Metrics that were NaN or infinite."""
    rung: int | None = None
    """Nominal samples of the rung at which this was measured; None between rungs."""
    checkpoint: str | None = None
    """Where the trial can continue from, if this report left a checkpoint."""


class TrialResult(BaseModel):
    """How a trial ended; `result.json` holds it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    state: State
    kind: Kind | None = None
    metrics: Metrics = {}
    """The last evaluation's metrics (`validation/loss`, ...) and the last `train/loss`."""
    not_finite: tuple[str, ...] = ()
    """Metrics that the last evaluation found to be NaN or infinite."""
    step: int = 0
    samples: int = 0
    tokens: int = 0
    seconds: dict[str, float] = {}
    """By phase: load, quantize, tokenize, train, evaluate. 0 for what was resident."""
    memory: dict[str, int] = {}
    """Peaks of this trial in bytes: on a GPU peak_allocated_bytes (tensors), peak_reserved_bytes
    (torch's allocator) and peak_device_bytes (with CUDA's context and all else there), and
    peak_rss_bytes (resident set of the host process while the trial ran). After memory ran out,
    those of the last settings that were tried."""
    memory_ladder: list[LadderRung] = []
    """Each time that memory ran out in training or evaluation, or would have by prediction, and
    the trial went on with less."""
    predicted: dict[str, float] = {}
    """What was told before it began (`PredictedTrial.numbers`): of the trial alone, to be compared
    with `memory` and `seconds`. Empty where nothing was."""
    trainable_parameters: int | None = None
    adapter: str | None = None
    """Folder of the saved adapter, relative to the attempt's folder."""
    provenance: dict[str, Any] = {}
    """Fingerprints of base, data and template; versions, commit, device, threads."""
    error: str | None = None
    """One line that says what went wrong."""
    traceback: str | None = None

    @property
    def peak_memory_bytes(self) -> int | None:
        """The first that was measured: of the whole GPU, of its tensors, of the process."""
        names = ("peak_device_bytes", "peak_allocated_bytes", "peak_rss_bytes")
        return next((self.memory[name] for name in names if self.memory.get(name)), None)

    @property
    def minutes(self) -> float:
        """Of all phases together."""
        return sum(self.seconds.values()) / 60

    @classmethod
    def from_error(cls, error: BaseException, traceback: str, **seen: Any) -> "TrialResult":
        """The result of a trial that an exception ended; `seen` is what was known by then."""
        kind = kind_of(error)
        text = str(error) or type(error).__name__
        return cls(state=kind.state, kind=kind, error=text, traceback=traceback, **seen)
