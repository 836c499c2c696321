"""Messages cross the wire as plain JSON and come out as they went in."""

import json

import pytest
from pydantic import ValidationError

from peft_jobs import Kind, Progress, State, TrialResult
from peft_jobs.host.messages import End, Interrupted, Message, Report, message_of

MESSAGES: tuple[Message, ...] = (
    Report(seq=3, progress=Progress(step=5, samples=40, tokens=9, metrics={"train/loss": 0.1})),
    End(result=TrialResult(state=State.PRUNED, kind=Kind.WEAK, provenance={"slots": 2})),
    Interrupted(),
)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.type)
def test_a_message_survives_the_wire(message: Message) -> None:
    values = message.model_dump(mode="json")
    assert message_of(json.dumps(values)) == message
    assert message_of(message.model_dump_json()) == message
    assert values["type"] == message.type


def test_a_message_of_no_known_type_is_refused() -> None:
    with pytest.raises(ValidationError, match="progress"):
        message_of(json.dumps({"type": "report", "seq": 1}))
    with pytest.raises(ValidationError, match="news"):
        message_of(json.dumps({"type": "news"}))
