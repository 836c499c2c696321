"""Conversations through the tokenizer's chat template; every assistant turn is supervised.

A template with `{% generation %}` marks says itself which tokens the assistant wrote. For others
the conversation is rendered up to the start and up to the end of each assistant turn; what lies
between, in the text of the whole conversation, is supervised with the turn's closing tokens. The
tokens are those of the whole text, as `apply_chat_template(tokenize=True)` gives them. A template
that prints today's date prints that of one fixed day: tokens do not depend on when they are made.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from peft_jobs.errors import DataError, SpecError
from peft_jobs.spec import CausalLMSpec
from peft_jobs.spec.templates import render
from peft_jobs.tasks.task import IGNORED, Encoder, Example, Row

Message = dict[str, Any]
# What a template may run into: its own errors, and Python's in its expressions.
_OF_TEMPLATES = (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
TOOL_CALL = "tool_call"
"""A role in which some data sets keep what the assistant asks of a tool, as JSON."""
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
TODAY = datetime(2024, 7, 26)
"""The day of all conversations: the one that Llama's templates print where there is no clock."""
_CLOCK = "strftime_now"
_CODES = ("-d", "-m", "-j", "-H", "-I", "-M", "-S", *"aAbBcdDeFfGHhIjklmMpPrRSTuUVwWxXyYzZ%")
_REPLACE = [f"replace('%{code}', '{TODAY:%{code}}')" for code in _CODES]
_FIXED_CLOCK = (
    f"{{% macro {_CLOCK}(format) %}}{{{{ format | {' | '.join(_REPLACE)} }}}}{{% endmacro %}}\n"
)
"""Written before a template, hides the clock that transformers gives it; prints nothing itself."""


def mistake(row: Row, spec: CausalLMSpec) -> str | None:
    """Why a row holds no conversation to learn from, or None."""
    assert spec.messages is not None
    messages, column = row[spec.messages], spec.messages
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        return f"column {column!r} must hold a list of messages"
    if not all(isinstance(message, dict) and message.get("role") for message in messages):
        return f"column {column!r} must hold messages with a role and a content"
    turns = [message for message in messages if message["role"] in ("assistant", TOOL_CALL)]
    if not turns:
        return f"column {column!r} has no assistant turn to learn from"
    if not any(str(turn.get("content") or "").strip() or _extras(turn) for turn in turns):
        return f"the response is empty (assistant turns of column {column!r})"
    if any(_calls(turn) is None for turn in turns if turn["role"] == TOOL_CALL):
        return f"a {TOOL_CALL} of column {column!r} is no JSON with a name and arguments"
    if spec.tools is not None and _tools(row[spec.tools]) is None:
        return f"column {spec.tools!r} must hold a list of tools, or its JSON text"
    return None


def encoder(tokenizer: PreTrainedTokenizerBase, spec: CausalLMSpec, max_length: int) -> Encoder:
    """The encoder of `CausalLM` for conversations. Raises SpecError without a chat template."""
    field = "task.messages" if spec.messages is not None else "task.use_chat_template"
    if not tokenizer.chat_template:
        raise SpecError(
            f"{field} needs a tokenizer with a chat template; {tokenizer.name_or_path} has none: "
            "write `prompt` and `response` templates instead"
        )
    if not tokenizer.is_fast:
        raise SpecError(f"{field} needs a fast tokenizer; {tokenizer.name_or_path} has none")
    marked = _GENERATION.search(tokenizer.get_chat_template()) is not None

    def encode(row: Row) -> Example | None:
        messages = _messages(row, spec)
        tools = None if spec.tools is None else _tools(row[spec.tools])
        try:
            tokens, supervised, num_bytes = (_marked if marked else _between)(
                _Template(tokenizer, tools or None), messages, max_length
            )
        except DataError:
            raise
        except _OF_TEMPLATES as error:
            raise DataError(f"the chat template refuses the conversation: {error}") from error
        labels = [
            token if counts else IGNORED for token, counts in zip(tokens, supervised, strict=True)
        ]
        labels[:1] = [IGNORED]
        if all(label == IGNORED for label in labels):
            return None
        return {"input_ids": tokens, "labels": labels, "num_bytes": num_bytes}

    return encode


def _messages(row: Row, spec: CausalLMSpec) -> list[Message]:
    if spec.messages is not None:
        return [_as_usual(_without_nulls(message)) for message in row[spec.messages]]
    assert spec.prompt is not None
    assert spec.response is not None
    return [
        {"role": "user", "content": render(spec.prompt, row)},
        {"role": "assistant", "content": render(spec.response, row)},
    ]


def _as_usual(message: Message) -> Message:
    """A call of a tool that has a role of its own, as the assistant's turn that templates know."""
    if message["role"] != TOOL_CALL:
        return message
    calls = [{"type": "function", "function": call} for call in _calls(message) or []]
    return {"role": "assistant", "content": "", "tool_calls": calls}


def _calls(message: Message) -> list[Message] | None:
    """The calls in a message of the role `tool_call`; None if there is none."""
    try:
        found = json.loads(message.get("content") or "")
    except ValueError:
        return None
    calls = found if isinstance(found, list) else [found]
    good = all(isinstance(call, dict) and {"name", "arguments"} <= call.keys() for call in calls)
    return calls if good and calls else None


def _tools(cell: Any) -> list[Message] | None:
    """The tools of a row, in the form that templates expect; None if the cell holds no list."""
    try:
        found = json.loads(cell) if isinstance(cell, str) and cell.strip() else cell or []
    except ValueError:
        return None
    if not isinstance(found, list) or not all(isinstance(tool, dict) for tool in found):
        return None
    tools = [_without_nulls(tool) for tool in found]
    return [
        tool if "function" in tool else {"type": "function", "function": tool} for tool in tools
    ]


def _without_nulls(value: Any) -> Any:
    """Arrow gives every mapping all keys of its column; templates ask which are there."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


@dataclass(frozen=True)
class _Template:
    """A tokenizer's chat template, with the tools of one row."""

    tokenizer: PreTrainedTokenizerBase
    tools: Any
    """A list of mappings, or None."""

    @property
    def text(self) -> str:
        """The template itself, with another clock where it asks for one."""
        found = self.tokenizer.get_chat_template(tools=self.tools)
        return _FIXED_CLOCK + found if _CLOCK in found else found

    def render(self, messages: list[Message], add_generation_prompt: bool = False) -> str:
        rendered = self.tokenizer.apply_chat_template(
            messages,
            tools=self.tools,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            chat_template=self.text,
        )
        return str(rendered)


def _marked(
    template: _Template, messages: list[Message], max_length: int
) -> tuple[list[int], list[bool], int]:
    tokenizer = template.tokenizer
    found: Any = tokenizer.apply_chat_template(
        messages,
        tools=template.tools,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
        chat_template=template.text,
    )
    tokens = list(found["input_ids"])[:max_length]
    supervised = [bool(mark) for mark in found["assistant_masks"]][:max_length]
    written = [token for token, counts in zip(tokens, supervised, strict=True) if counts]
    return tokens, supervised, len(str(tokenizer.decode(written)).encode())


def _between(
    template: _Template, messages: list[Message], max_length: int
) -> tuple[list[int], list[bool], int]:
    text = template.render(messages)
    spans = [
        _span(template, messages, turn, text)
        for turn, message in enumerate(messages)
        if message["role"] == "assistant"
    ]
    found = template.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    tokens = list(found["input_ids"])[:max_length]
    offsets = found["offset_mapping"][:max_length]
    supervised = [
        any(first < end and last > start for start, end in spans) and first < last
        for first, last in offsets
    ]
    reached = offsets[-1][1] if offsets else 0
    num_bytes = sum(len(text[start : min(end, reached)].encode()) for start, end in spans)
    return tokens, supervised, num_bytes


def _span(template: _Template, messages: list[Message], turn: int, text: str) -> tuple[int, int]:
    """First and last + 1 character, in the whole `text`, of what the assistant wrote in `turn`."""
    openings = [
        template.render(messages[:turn], add_generation_prompt=prompted)
        for prompted in (True, False)
        if turn or prompted
    ]
    start = next((len(opening) for opening in openings if text.startswith(opening)), None)
    upto = template.render(messages[: turn + 1])
    if start is not None and text.startswith(upto) and len(upto) > start:
        return start, len(upto)
    # Some templates (Qwen3) render a turn differently once another follows: find its words.
    words = str(messages[turn].get("content") or "").strip()
    if start is not None and words and words in upto:
        written = upto[upto.rindex(words) :]
        if (found := text.find(written, start)) >= 0:
            return start, found + len(written)
    raise DataError(
        f"the chat template rewrites message {turn + 1}, so that its tokens cannot be found: "
        "use a template with {% generation %} marks"
    )


def _extras(message: Message) -> bool:
    return any(value for key, value in message.items() if key not in ("role", "content"))
