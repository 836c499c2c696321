"""Point: a trial that is to be launched."""

from dataclasses import dataclass

from peft_jobs import TrialSpec
from search_spaces import Params


@dataclass(frozen=True)
class Point:
    """A trial to be run: its number in the study and its spec."""

    number: int
    attempt: int
    params: Params
    spec: TrialSpec
    checkpoint: str | None = None
    retry_of: int | None = None
    """The failed trial that this one runs again."""
    confirm_of: int | None = None
    """The trial whose configuration this one repeats, see `reruns`."""
