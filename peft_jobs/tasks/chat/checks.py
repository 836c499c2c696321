"""What a template must not do to a conversation: drop words, mix them up, or leave a turn open."""

import re
from collections.abc import Mapping, Sequence

from peft_jobs.errors import DataError
from peft_jobs.spec.cells import structure_of, text_of
from peft_jobs.tasks.chat.conversation import REASONING, Conversation, Message
from peft_jobs.tasks.chat.signs import MARKER, SIGN, Span, sign_ends, talks_of

_SIMPLE = re.compile(r"[\w ]+")
"""Arguments of tools that every template writes as they are."""


def check_dropped(messages: Sequence[Message], given: Sequence[Message], signed_text: str) -> None:
    """Raise DataError for a message whose sign (in `given`) does not come through."""
    ends = sign_ends(signed_text)
    for number, message in enumerate(messages):
        if given[number] != message and number not in ends:
            what, remedy = "words", ""
            if message.get("tool_calls"):  # the sign is in the words, or else in the last call
                what = "words beside the tool calls" if message["content"].strip() else "tool calls"
                remedy = ", or leave them out of the data"
            if message["role"] != "assistant":
                remedy = ", or another role in data.roles"
            raise DataError(
                f"the chat template drops the {what} of message "
                f"{number + 1} (role {message['role']!r}): give another one as task.chat_template"
                f"{remedy}"
            )


def check_turns(
    conversation: Conversation,
    text: str,
    spans: Mapping[int, Sequence[Span]],
    special: re.Pattern[str],
) -> None:
    """Raise DataError for a learned turn whose words are not in its spans, that ends in no special
    token, or in whose spans another's words are; `text` has the signs."""
    messages, talks = conversation.messages, talks_of(conversation.messages)
    if lost := [turn for turn in talks if turn not in spans]:
        raise DataError(
            f"the {{% generation %}} marks of the chat template leave out message {lost[0] + 1}"
        )
    for turn in (turn for turn in spans if conversation.learned[turn]):
        written = "".join(text[start:end] for start, end in spans[turn])
        _check_words(messages[turn], turn, SIGN.sub("", written), is_last=turn == talks[-1])
        _check_end(turn, SIGN.sub("", written), special)
        for other in map(int, SIGN.findall(written)):
            if messages[other]["role"] != "assistant":
                raise DataError(
                    f"the chat template puts message {other + 1} (role "
                    f"{messages[other]['role']!r}) among the assistant's words: give another one "
                    "as task.chat_template"
                )


def _check_words(message: Message, turn: int, written: str, *, is_last: bool) -> None:
    """Templates may leave the thoughts of earlier turns out, as models are not shown them."""
    thoughts, _, words = message["content"].rpartition("</think>")
    thoughts = thoughts.partition("<think>")[2] + "".join(
        text_of(message[key]) for key in REASONING if key in message
    )
    said = [words, *([thoughts] if is_last else [])]
    for call in message.get("tool_calls", ()):
        function = call["function"]
        arguments = structure_of(function["arguments"])
        values = arguments.values() if isinstance(arguments, Mapping) else ()
        simple = [v for v in values if isinstance(v, str) and _SIMPLE.fullmatch(v)]
        said += [function["name"], *simple]
    if missing := [text for text in said if _bare(text) not in _bare(written)]:
        raise DataError(
            f"of message {turn + 1} the assistant's words {missing[0].strip()[:40]!r} do not come "
            "through the chat template: give another one as task.chat_template"
        )


def _check_end(turn: int, written: str, special: re.Pattern[str]) -> None:
    ends = [match.end() for match in special.finditer(written)]
    if ends and not written[ends[-1] :].strip():
        return
    marker = re.search(rf"{MARKER}\s*$", written)
    unknown = f": {marker.group().strip()!r} is none of the tokenizer's" if marker else ""
    raise DataError(
        f"no special token ends message {turn + 1}{unknown}, so that a model would not learn to "
        "stop; the chat template must close the assistant's turns with one, such as eos, within "
        "its {% generation %} marks if it has such: give another as task.chat_template (zephyr, "
        "or a .jinja file)"
    )


def _bare(text: str) -> str:
    return "".join(text.split())
