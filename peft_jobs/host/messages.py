"""What crosses the wire between a driver and its hosts: an Assignment one way, messages the other.

On a cluster they cross as plain JSON (`dataclasses.asdict`, `model_dump`, `message_of`).
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from peft_jobs.host.result import Progress, TrialResult


@dataclass(frozen=True)
class Assignment:
    """What a host needs to run one attempt of a trial; plain JSON values."""

    trial: int
    attempt: int
    spec_json: str
    directory: str
    """`attempts/<k>` of the trial: a path, or a store's URL."""
    checkpoint: str | None = None
    """Where an earlier attempt left off; None to start at the first step."""
    ladder_json: str | None = None
    """The LadderRung below which its memory settings begin, if not at those of its spec."""


class Report(BaseModel):
    """A trial has come so far."""

    model_config = ConfigDict(frozen=True)

    type: Literal["report"] = "report"
    seq: int
    """Numbers the reports of an attempt from 1: asking for the next one acknowledges this one."""
    progress: Progress


class End(BaseModel):
    """A trial has ended."""

    model_config = ConfigDict(frozen=True)

    type: Literal["end"] = "end"
    result: TrialResult


class Interrupted(BaseModel):
    """An attempt was stopped without an end: the trial goes on in a later one."""

    model_config = ConfigDict(frozen=True)

    type: Literal["interrupted"] = "interrupted"


Message = Report | End | Interrupted
_MESSAGE: TypeAdapter[Message] = TypeAdapter(Annotated[Message, Field(discriminator="type")])


def message_of(text: str) -> Message:
    """The message that was dumped as this JSON. Raises pydantic's error."""
    return _MESSAGE.validate_json(text)
