"""The messages of a row, in the one form that templates know.

Content is text; what the assistant asks of tools is `tool_calls`, whose arguments are mappings,
whichever way a data set writes them. Keys that speak of the loss are taken out and obeyed.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peft_jobs.errors import DataError
from peft_jobs.spec import CausalLMSpec
from peft_jobs.spec.cells import json_text, structure_of, text_of
from peft_jobs.spec.templates import render
from peft_jobs.tasks.task import Row

Message = dict[str, Any]
TOOL_CALL = "tool_call"
"""A role in which some data sets keep what the assistant asks of a tool, as JSON."""
REASONING = ("reasoning_content", "reasoning", "thinking")
"""Keys for what the assistant thinks before it answers; transformers takes each for the others."""
LOSS_KEYS = ("weight", "train", "training", "loss")
"""Keys that say, with 0 or 1, false or true, whether a message is learned: OpenAI's and Mistral's,
Axolotl's, ms-swift's."""
_OF_LOSS = re.compile(
    r"loss|(un)?mask(ed)?|train(ed|able|ing)?|learn(ed|able)?|supervised?|weight|ignored?"
)
"""Words of keys that speak of the loss in a form that is not known here (loss_mask, trainable)."""
_ROLES = {"function": "tool"}


@dataclass(frozen=True)
class Conversation:
    messages: list[Message]
    learned: list[bool]
    """For each message, whether it is supervised."""
    tools: list[Message] | None = None


def mistake(row: Row, spec: CausalLMSpec) -> str | None:
    """Why a row holds no conversation to learn from, or None."""
    try:
        conversation_of(row, spec)
    except DataError as error:
        return str(error)
    except RecursionError:
        return f"column {spec.messages!r} is nested too deeply"
    return None


def conversation_of(row: Row, spec: CausalLMSpec) -> Conversation:
    """The conversation of a row. Raises DataError, naming the column and the message."""
    if spec.messages is None:
        assert spec.prompt is not None
        assert spec.response is not None
        user = {"role": "user", "content": render(spec.prompt, row)}
        answer = {"role": "assistant", "content": render(spec.response, row)}
        return Conversation([user, answer], [False, True])
    cell, column = row[spec.messages], spec.messages
    if not isinstance(cell, Sequence) or isinstance(cell, str) or not cell:
        raise DataError(f"column {column!r} must hold a list of messages")
    if not all(
        isinstance(m, Mapping) and isinstance(m.get("role"), str) and m["role"] for m in cell
    ):
        forms = "; conversations in another form are named by data.format"
        raise DataError(f"column {column!r} must hold messages with a role and a content{forms}")
    messages, learned = [], []
    for number, message in enumerate(cell, start=1):
        try:
            usual = _usual(dict(message))
            learned.append(_is_learned(message, usual))
        except DataError as error:
            raise DataError(f"message {number} of column {column!r} {error}") from error
        messages.append(usual)
    turns = [message for message in messages if message["role"] == "assistant"]
    if not turns:
        raise DataError(
            f"column {column!r} has no assistant turn to learn from{_other_roles(messages)}"
        )
    if not any(says(turn) for turn in turns):
        raise DataError(f"the response is empty (assistant turns of column {column!r})")
    if not any(learned):
        raise DataError(f"no assistant turn of column {column!r} is to be learned")
    return Conversation(messages, learned, None if spec.tools is None else _tools(row, spec.tools))


def says(message: Message) -> bool:
    """Whether there is anything in a message."""
    return bool(message["content"].strip()) or any(
        message.get(key) for key in ("tool_calls", *REASONING)
    )


def _usual(message: Message) -> Message:
    """A message as templates know it, without the keys that speak of the loss."""
    found = {k: v for k, v in message.items() if v is not None and k not in LOSS_KEYS}
    found["role"] = _ROLES.get(found["role"], found["role"])
    if found["role"] == TOOL_CALL:
        calls = _calls(found.get("content"))
        return {"role": "assistant", "content": "", "tool_calls": calls}
    if (call := found.pop("function_call", None)) is not None:
        found["tool_calls"] = [call]
    if (calls := found.pop("tool_calls", None)) not in (None, [], ""):
        found["tool_calls"] = _calls(calls)
    refusal = found.pop("refusal", None)
    found["content"] = _content(found) or text_of(refusal)
    return found


def _content(message: Message) -> str:
    """The text of a message; parts of text are one text."""
    content = message.get("content")
    if message["role"] == "tool" and isinstance(content, Mapping):
        return json_text(content)
    parts = content if isinstance(content, list) else [content]
    if message["role"] == "tool" and not all(isinstance(p, str) or _is_part(p) for p in parts):
        return text_of(content)
    return "".join(map(_part, parts))


def _is_part(part: Any) -> bool:
    return isinstance(part, Mapping) and isinstance(part.get("type"), str)


def _part(part: Any) -> str:
    if not isinstance(part, Mapping | list):
        return text_of(part)
    kind = part.get("type") if isinstance(part, Mapping) else None
    if isinstance(part, Mapping) and kind in ("text", "input_text", "output_text"):
        return text_of(part.get("text", part.get("content")))
    raise DataError(f"must hold text, or a list of parts of the type text; got {str(part)[:60]!r}")


def _calls(value: Any) -> list[Message]:
    """Calls of tools, each with a mapping of arguments."""
    found = structure_of(value)
    calls = found if isinstance(found, list) else [found]
    return [_call(structure_of(call)) for call in calls] or [_call(None)]


def _call(call: Any) -> Message:
    inner = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
        raise DataError("must hold calls of tools, as JSON with a name and arguments")
    arguments = structure_of(inner.get("arguments") or {})
    if not isinstance(arguments, Mapping):
        raise DataError(f"calls {inner['name']!r} with arguments that are no JSON object")
    outer = {k: v for k, v in call.items() if k in ("id", "type") and v is not None}
    rest = {k: v for k, v in inner.items() if k not in ("id", "type")}
    return {"type": "function", **outer, "function": {**rest, "arguments": dict(arguments)}}


def _is_learned(message: Message, usual: Message) -> bool:
    given = {key: message[key] for key in LOSS_KEYS if message.get(key) is not None}
    for key, value in given.items():
        if value not in (0, 1):
            raise DataError(f"has {key} {value!r}; only 0 and 1 (false and true) can be obeyed")
        if value and usual["role"] != "assistant":
            raise DataError(f"has {key} {value!r}, but only the assistant's turns are learned")
    for key in message.keys() - given:
        if message[key] not in (None, [], "") and any(map(_OF_LOSS.fullmatch, key.split("_"))):
            raise DataError(f"has {key}, which cannot be obeyed; write train: false or true")
    return usual["role"] == "assistant" and all(given.values()) and says(usual)


def _tools(row: Row, column: str) -> list[Message] | None:
    """The tools of a row, in the form that templates expect."""
    cell = row[column]
    found = [] if cell is None or cell == "" else structure_of(cell)
    tools = [structure_of(tool) for tool in found] if isinstance(found, list) else None
    if tools is None or not all(isinstance(tool, Mapping) for tool in tools):
        raise DataError(f"column {column!r} must hold a list of tools, or its JSON text")
    return [
        dict(tool) if "function" in tool else {"type": "function", "function": tool}
        for tool in tools
    ] or None


def _other_roles(messages: Sequence[Message]) -> str:
    roles = dict.fromkeys(message["role"] for message in messages)
    return f"; it has {', '.join(map(repr, roles))}: say in data.roles which is the assistant's"
