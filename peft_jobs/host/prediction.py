"""Prediction: what a trial will take, known before it runs; light: drivers and tables read it."""

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field

from peft_jobs.host.gpus import CONTEXT_BYTES
from peft_jobs.spec.memory_settings import LadderRung

CATEGORIES = (
    *("weights", "quantization", "adapter", "gradients", "optimizer"),
    *("activations", "logits", "workspace", "fragments"),
)
"""What memory is taken by."""
MARGIN = 0.05
"""Share by which predicted memory must be beyond a limit before anything follows from it: on PEFT's
method comparison it is up to 3 % off."""
Amount = Annotated[int, Field(ge=0)]


class Lengths(BaseModel):
    """What decides the shapes of a batch: of training rows, in tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokens: Annotated[int, Field(ge=1)]
    """Of the longest row; all rows of a batch are taken to be as long."""
    supervised: Annotated[int, Field(ge=0)]
    """Tokens of a row that count in the loss; of an encoder with a decoder, the target's."""
    num_labels: Annotated[int, Field(ge=1)] = 2
    """Of a head; tasks without one have none."""
    mean_tokens: Annotated[float, Field(ge=0)] = 0.0
    """Of all rows: what time follows from; 0 takes all to be as long as the longest."""

    @classmethod
    def of(cls, tokens: int, num_labels: int = 2) -> Self:
        """Rows of so many tokens, all of which count."""
        return cls(tokens=tokens, supervised=tokens, num_labels=num_labels)

    def pads(self, rows: int) -> bool:
        """Whether a batch of so many rows has padding, as far as is known."""
        return rows > 1 and self.mean_tokens < self.tokens

    @property
    def mean_share(self) -> float:
        """Of the longest row, what a mean one has."""
        return self.mean_tokens / self.tokens if self.mean_tokens else 1.0


class Prediction(BaseModel):
    """Of one trial, or of several alike in the slots of a pack, on one device.

    `trainable_parameters` is exact, but for AdaMSS, where values of the weights decide a hundredth
    of it; all else is predicted.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: str
    slots: Annotated[int, Field(ge=1)]
    """Trials in a step; 1 is a trial by itself."""
    longest_tokens: Annotated[int, Field(ge=1)]
    """Of the rows that it is asked for."""
    peak_bytes: Amount
    """What the allocator holds at most: of all slots together."""
    memory: dict[str, int]
    """The same by CATEGORIES, at the moment of the peak."""
    trainable_parameters: Amount
    adapter_bytes: Amount
    """Of a saved adapter's tensors."""
    checkpoint_bytes: Amount
    """Of a checkpoint's tensors: parameters and optimizer state of one trial."""
    launches: Amount
    """Kernels in an optimizer step."""
    flops: Amount
    """Floating-point operations in an optimizer step."""
    moved_bytes: Amount
    """Read and written by the kernels of an optimizer step."""
    seconds_per_step: Annotated[float, Field(ge=0)]
    """Of the slots together, with the longest rows."""
    seconds_per_sample: Annotated[float, Field(ge=0)]
    """Of a mean row."""
    usable_bytes: Amount
    """Of the device, for tensors."""
    is_of_gpu: bool = True

    @property
    def fits(self) -> bool:
        """Whether the device has so much memory."""
        return self.peak_bytes <= self.usable_bytes

    def fits_within(self, margin: float) -> bool:
        """Whether it does if it is up to `margin` less than predicted."""
        return self.peak_bytes <= self.usable_bytes * (1 + margin)

    @property
    def peak_allocated_bytes(self) -> int:
        """Of its tensors alone, without what the allocator cannot use."""
        return self.peak_bytes - self.memory.get("fragments", 0)


class PredictedTrial(BaseModel):
    """What a trial that is about to start will take alone, and where its memory ladder begins."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prediction: Prediction
    """With the settings that it begins with."""
    ladder: LadderRung | None = None
    """The last settings that would not fit; None if those of the trial do, or if none does."""
    fits: bool
    """Whether it does with some settings."""

    @property
    def numbers(self) -> dict[str, float]:
        """What a result holds beside what was measured. A CPU's tensors are not measured apart."""
        found = self.prediction
        told = {
            "trainable_parameters": float(found.trainable_parameters),
            "seconds_per_sample": found.seconds_per_sample,
        }
        if found.is_of_gpu:
            told["memory/peak_allocated_bytes"] = float(found.peak_allocated_bytes)
            told["memory/peak_reserved_bytes"] = float(found.peak_bytes)
            told["memory/peak_device_bytes"] = float(found.peak_bytes + CONTEXT_BYTES)
        return told


PREDICTED = {
    "memory/peak_allocated_bytes": MARGIN,
    "memory/peak_reserved_bytes": MARGIN,
    "memory/peak_device_bytes": MARGIN,
    "trainable_parameters": 0.0,
}
"""Numbers of a trial that a point may be turned away for, and the share beyond the limit that a
prediction must be."""
