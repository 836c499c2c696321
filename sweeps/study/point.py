"""Point: a trial that is to be launched."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from peft_jobs import TrialResult, TrialSpec
from peft_jobs.host.messages import Assignment
from peft_jobs.host.prediction import PredictedTrial
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
    predicted: PredictedTrial | None = None
    """What it will take, if that could be told."""

    def assignment(self, directory: str) -> Assignment:
        """What its host needs; it writes to `directory`."""
        ladder = None if self.predicted is None else self.predicted.ladder
        return Assignment(
            self.number,
            self.attempt,
            self.spec.to_json(),
            directory,
            self.checkpoint,
            None if ladder is None else ladder.model_dump_json(),
        )

    def with_prediction(self, result: TrialResult) -> TrialResult:
        """A result of the trial, with what was predicted beside what was measured."""
        if self.predicted is None:
            return result
        return result.model_copy(update={"predicted": self.predicted.numbers})


def predicted_of(known: Mapping[str, Any]) -> PredictedTrial | None:
    """What was predicted of a trial, by its user attributes."""
    found = known.get("predicted")
    return None if found is None else PredictedTrial.model_validate(found)
