"""What crosses the wire between a driver and its hosts."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Assignment:
    """What a host needs to run one attempt of a trial; plain JSON values."""

    trial: int
    attempt: int
    spec_json: str
    directory: str
    checkpoint: str | None
