"""Prediction: what a trial will take, known before it runs; light: drivers and tables read it."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

CATEGORIES = (
    *("weights", "quantization", "adapter", "gradients", "optimizer"),
    *("activations", "logits", "workspace"),
)
"""What memory is taken by."""


class Prediction(BaseModel):
    """Of one trial, or of several alike in the slots of a pack, on one device."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    peak_bytes: Annotated[int, Field(ge=0)]
