"""From a row with a conversation to tokens and labels.

The tokens are those of the whole text, as `apply_chat_template(tokenize=True)` gives them, but that
bos and eos stand once where template and data write them twice in a row.
"""

import logging
import re
from bisect import bisect
from collections.abc import Mapping, Set
from dataclasses import replace
from typing import Any, get_args

from transformers import PreTrainedTokenizerBase

from peft_jobs.errors import DataError, SpecError
from peft_jobs.spec import CausalLMSpec
from peft_jobs.spec.cells import json_text
from peft_jobs.spec.data import Role
from peft_jobs.tasks.chat.conversation import (
    REASONING,
    Conversation,
    Message,
    conversation_of,
    says,
)
from peft_jobs.tasks.chat.signs import Span
from peft_jobs.tasks.chat.template import OF_TEMPLATES, ChatTemplate, template_of
from peft_jobs.tasks.chat.turns import Written, written_turns
from peft_jobs.tasks.chat.written_numbers import WrittenNumbers
from peft_jobs.tasks.task import IGNORED, Encoder, Example, Row
from peft_jobs.tasks.tokenizer_pieces import special_tokens

log = logging.getLogger(__name__)

_USUAL_ROLES = set(get_args(Role))
_USUAL_KEYS = {"role", "content", "id", "tool_call_id", *REASONING}


def encoder(tokenizer: PreTrainedTokenizerBase, spec: CausalLMSpec, max_length: int) -> Encoder:
    """The encoder of `CausalLM` for conversations. Raises SpecError without a chat template."""
    field = "task.messages" if spec.messages is not None else "task.use_chat_template"
    own = template_of(tokenizer, spec.chat_template)
    if not own:
        raise SpecError(
            f"{field} needs a tokenizer with a chat template; {tokenizer.name_or_path} has none: "
            "give one as task.chat_template (chatml, zephyr or a .jinja file), or write `prompt` "
            "and `response` templates instead"
        )
    if not tokenizer.is_fast:
        raise SpecError(f"{field} needs a fast tokenizer; {tokenizer.name_or_path} has none")
    special_ids = special_tokens(tokenizer)
    special = _special(tokenizer)
    templates = {
        with_tools: ChatTemplate.find(tokenizer, own, [] if with_tools else None)
        for with_tools in (False, True)
    }
    told: set[str] = set()

    def encode(row: Row) -> Example | None:
        conversation = _without_eos(conversation_of(row, spec), tokenizer)
        template = templates[bool(conversation.tools)]
        for key in _unused_keys(template, conversation.messages) - told:
            told.add(key)
            log.warning("%s: the chat template does not use the key %r of messages", field, key)
        for role in {message["role"] for message in conversation.messages} - _USUAL_ROLES:
            if not template.mentions(role):
                raise DataError(f"has the role {role!r}; say in data.roles which it is")
        if conversation.tools and not template.mentions("tools") and "tools" not in told:
            told.add("tools")
            log.warning("task.tools: the chat template does not use tools")
        template = replace(template, tools=conversation.tools)
        try:
            written = _written(template, conversation, special)
        except DataError:
            raise
        except OF_TEMPLATES as error:
            raise DataError(f"the chat template refuses the conversation: {error}") from error
        return _example(tokenizer, special_ids, written, max_length)

    return encode


def _written(
    template: ChatTemplate, conversation: Conversation, special: re.Pattern[str]
) -> Written:
    """With the arguments of tools as mappings, or as JSON for templates that take only text."""
    calls = [c["function"] for m in conversation.messages for c in m.get("tool_calls", ())]
    if not calls:
        return written_turns(template, conversation, special)
    messages = [_with_text_arguments(message) for message in conversation.messages]
    as_text = replace(conversation, messages=messages)
    try:
        written = written_turns(template, conversation, special)
    except OF_TEMPLATES as error:
        try:
            return written_turns(template, as_text, special)
        except OF_TEMPLATES:
            raise error from None
    printed = any(_as_python(c["arguments"]) in written.text for c in calls if c["arguments"])
    return written_turns(template, as_text, special) if printed else written


def _as_python(arguments: Mapping[str, Any]) -> str:
    """What a template prints that takes arguments for text."""
    numbers = WrittenNumbers(among=arguments)
    return numbers.written(str(numbers.stand_ins(arguments)))[0]


def _with_text_arguments(message: Message) -> Message:
    if "tool_calls" not in message:
        return message
    calls = [
        {
            **call,
            "function": {**call["function"], "arguments": json_text(call["function"]["arguments"])},
        }
        for call in message["tool_calls"]
    ]
    return {**message, "tool_calls": calls}


def _example(
    tokenizer: PreTrainedTokenizerBase, special: Set[int], written: Written, max_length: int
) -> Example | None:
    """None if no supervised token is left within `max_length`. `num_bytes` is of the text that is
    scored: without special tokens, as a reader sees it."""
    try:
        written.text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            "the conversation holds half of a character (\\ud800 to \\udfff)"
        ) from error
    found = tokenizer(written.text, add_special_tokens=False, return_offsets_mapping=True)
    single = {tokenizer.bos_token_id, tokenizer.eos_token_id}
    ids = list(found["input_ids"])
    kept = [n for n, token in enumerate(ids) if not (n and token in single and ids[n - 1] == token)]
    tokens = [ids[n] for n in kept][:max_length]
    offsets = [found["offset_mapping"][n] for n in kept][:max_length]
    spans = _spans(offsets, written)
    labels = [IGNORED if span is None else token for token, span in zip(tokens, spans, strict=True)]
    labels[:1] = [IGNORED]  # nothing predicts the first token
    if all(label == IGNORED for label in labels):
        return None
    num_bytes = reached = 0
    for label, (_, last), span in zip(labels, offsets, spans, strict=True):
        if span is not None and label != IGNORED and label not in special:
            num_bytes += len(written.text[max(reached, span[0]) : min(last, span[1])].encode())
        reached = max(reached, last)
    return {"input_ids": tokens, "labels": labels, "num_bytes": num_bytes}


def _spans(offsets: list[Span], written: Written) -> list[Span | None]:
    """The supervised span that each token is of, by its characters; some tokenizers say of white
    space that it has none."""
    ends = [end for _, end in written.spans]
    found = []
    for first, last in offsets:
        place = bisect(ends, first)  # the first that ends behind the token's beginning
        span = written.spans[place] if place < len(ends) else None
        if first == last:
            around = written.text[max(0, first - 1) : first + 1]
            is_inside = around != around.strip() and span is not None and span[0] < first
        else:
            is_inside = span is not None and span[0] < last
        found.append(span if is_inside else None)
    return found


def _without_eos(conversation: Conversation, tokenizer: PreTrainedTokenizerBase) -> Conversation:
    """A conversation whose turns do not hold the end that the template writes behind them."""
    eos = str(tokenizer.eos_token or "")
    messages = [
        {**m, "content": m["content"].rstrip().removesuffix(eos)}
        if eos and m["role"] == "assistant" and m["content"].rstrip().endswith(eos)
        else m
        for m in conversation.messages
    ]
    learned = [n and says(m) for n, m in zip(conversation.learned, messages, strict=True)]
    if not any(learned):
        raise DataError("the response is empty but for the end of a turn")
    return replace(conversation, messages=messages, learned=learned)


def _special(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """Matches the special tokens of a tokenizer."""
    names = map(str, tokenizer.convert_ids_to_tokens(sorted(special_tokens(tokenizer))))
    longest_first = sorted(names, key=lambda name: (-len(name), name))
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def _unused_keys(template: ChatTemplate, messages: list[Message]) -> set[str]:
    keys = {key for message in messages for key, value in message.items() if value}
    unused = {key for key in keys - _USUAL_KEYS if not template.mentions(key)}
    if keys & set(REASONING) and not any(map(template.mentions, REASONING)):
        unused |= keys & set(REASONING)
    return unused
