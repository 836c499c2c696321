"""Prediction: what a trial will take, known before it runs; light: drivers and tables read it."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

CATEGORIES = (
    *("weights", "quantization", "adapter", "gradients", "optimizer"),
    *("activations", "logits", "workspace", "fragments"),
)
"""What memory is taken by."""
Amount = Annotated[int, Field(ge=0)]


class Prediction(BaseModel):
    """Of one trial, or of several alike in the slots of a pack, on one device.

    `trainable_parameters` is exact; all else is predicted.
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
    """Of the slots together."""
    seconds_per_sample: Annotated[float, Field(ge=0)]
    usable_bytes: Amount
    """Of the device, for tensors."""

    @property
    def fits(self) -> bool:
        """Whether the device has so much memory."""
        return self.peak_bytes <= self.usable_bytes
