"""Signs: texts that occur nowhere else, and tell where a message ends in what is rendered."""

import re
from collections.abc import Sequence

from peft_jobs.tasks.chat.conversation import Message, says

OPEN, _CLOSE = "\ue0f0", "\ue0f1"
SIGN = re.compile(f"{OPEN}(\\d+){_CLOSE}")
MARKER = r"<[^<>\s]{1,40}>"
"""What looks like a special token, also where the tokenizer has none."""

Span = tuple[int, int]
"""First and last + 1 character."""


def sign(number: int) -> str:
    return f"{OPEN}{number}{_CLOSE}"


def signed(message: Message, number: int) -> Message:
    """A message whose last word is a sign; one without words has it in the last tool it calls."""
    if words := message["content"].rstrip():
        return {**message, "content": words + sign(number) + message["content"][len(words) :]}
    if calls := message.get("tool_calls"):
        function = calls[-1]["function"]
        named = {**calls[-1], "function": {**function, "name": function["name"] + sign(number)}}
        return {**message, "tool_calls": [*calls[:-1], named]}
    return message


def sign_ends(text: str) -> dict[int, int]:
    """For each message whose sign is in a text, the character behind the first one."""
    ends: dict[int, int] = {}
    for match in SIGN.finditer(text):
        ends.setdefault(int(match.group(1)), match.end())
    return ends


def talks_of(messages: Sequence[Message]) -> list[int]:
    """The numbers of the assistant's messages that say something."""
    return [n for n, m in enumerate(messages) if m["role"] == "assistant" and says(m)]
