"""Every chat template that trl ships, by kinds of conversation: what we supervise is what trl's own
templates with generation marks mark, or the row is a mistake.

trl marks some things that the prompt to answer has already given (a header, an opening `<think>`),
and keeps the thoughts of all turns where the templates themselves keep the last ones: there the
words must be the same.
"""

import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from peft_jobs.errors import DataError
from peft_jobs.spec import CausalLMSpec
from peft_jobs.tasks import IGNORED, TASKS, Encoder, Row
from tests.support.chat_tokenizers import tokenizer_for

_TRL = find_spec("trl")
FOLDER = Path(_TRL.origin or "").parent / "chat_templates" if _TRL is not None else Path("none")
NAMES = sorted(p.stem for p in FOLDER.glob("*.jinja") if not p.stem.endswith("_training"))
IN_PARTS = ("idefics3", "smolvlm", "llava_next")

Message = dict[str, Any]


def user(content: Any) -> Message:
    return {"role": "user", "content": content}


def assistant(content: Any, arguments: Any = None) -> Message:
    found: Message = {"role": "assistant", "content": content}
    if arguments is not None:
        function = {"name": "weather", "arguments": arguments}
        found["tool_calls"] = [{"id": "call00001", "type": "function", "function": function}]
    return found


SUNNY = {"role": "tool", "tool_call_id": "call00001", "name": "weather", "content": "no clouds"}
TOWN = {"type": "object", "properties": {"town": {"type": "string"}}, "required": ["town"]}
FUNCTION = {"name": "weather", "description": "of a town", "parameters": TOWN}
TOOLS = [{"type": "function", "function": FUNCTION}]
KINDS: dict[str, list[Message]] = {
    "single": [user("Is 0 even?"), assistant("Yes.")],
    "equal answers": [
        *(user("Is 0 even?"), assistant("Yes.")),
        *(user("Never pay Bob 0 crowns, is that clear?"), assistant("Yes.")),
    ],
    "tools": [
        *(user("Weather in Rome?"), assistant("", {"town": "Rome"}), SUNNY),
        *(assistant("It is sunny."), user("Thanks"), assistant("Welcome!")),
    ],
    "tools as text": [
        *(user("Weather in Rome?"), assistant(None, '{"town": "Rome"}'), SUNNY),
        assistant("It is sunny."),
    ],
    "words and tools": [
        *(user("Weather in Rome?"), assistant("Let me look.", {"town": "Rome"}), SUNNY),
        assistant("It is sunny."),
    ],
    "thoughts": [
        *(user("2+2?"), assistant("<think>\neasy\n</think>\n\nFour.")),
        *(user("3+3?"), assistant("<think>\nalso\n</think>\n\nSix.")),
    ],
    "parts": [
        user([{"type": "text", "text": "Hello "}, {"type": "text", "text": "0"}]),
        assistant([{"type": "text", "text": "Welcome!"}]),
    ],
    "assistant first": [assistant("Hi, how can I help?"), user("Tell me."), assistant("Sure.")],
    "system": [
        {"role": "system", "content": "Be brief."},
        *(user("Hi"), assistant("Hello!"), user("I go"), assistant("Bye.")),
    ],
    "developer": [{"role": "developer", "content": "Be brief."}, user("Hi"), assistant("Hello!")],
}
REFUSED = (
    r"refuses the conversation|drops the (?:words|tool calls)|"
    r"do not come through|no special token ends message|"
    r"among the assistant's words|rewrites message"
)
BEHIND_TOOLS = "<\uff5ctool\u2581outputs\u2581end\uff5c>"
"""What DeepSeek's prompt has behind the answers of tools."""
ALWAYS_RIGHT = {"single", "equal answers", "parts"}


def runs(tokenizer: Any, tokens: list[int], labels: list[int]) -> list[str]:
    """The text of each run of supervised tokens."""
    found: list[list[int]] = [[]]
    for token, label in zip(tokens, labels, strict=True):
        if label != IGNORED:
            found[-1].append(token)
        elif found[-1]:
            found.append([])
    return [tokenizer.decode(run) for run in found if run]


def marked_by_trl(
    name: str, tokenizer: Any, messages: list[Message], tools: Any
) -> list[str] | None:
    """What trl's template for training marks; None if it has none for this one."""
    base = re.sub(r"_v\d$", "", name)
    paths = [FOLDER / f"{stem}_training.jinja" for stem in (name, base)]
    path = next((p for p in paths if p.is_file()), FOLDER / f"{name}.jinja")
    template = path.read_text(encoding="utf-8")
    if not re.search(r"\{%-?\s*generation", template):
        return None
    found = tokenizer.apply_chat_template(
        [as_trl_wants(name, message, template) for message in messages],
        tools=tools,
        chat_template=template,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    marks = zip(found["input_ids"], found["assistant_masks"], strict=True)
    return runs(tokenizer, found["input_ids"], [t if mark else IGNORED for t, mark in marks])


def as_trl_wants(name: str, message: Message, template: str) -> Message:
    content = message["content"] or ""
    text = content if isinstance(content, str) else "".join(part["text"] for part in content)
    found = {**message, "content": [{"type": "text", "text": text}] if name in IN_PARTS else text}
    if message["role"] == "developer" and "'developer'" not in template:
        found["role"] = "system"
    for call in found.get("tool_calls", ()):
        if isinstance(arguments := call["function"]["arguments"], str):
            function = {**call["function"], "arguments": json.loads(arguments)}
            found["tool_calls"] = [{**call, "function": function}]
    return found


def refusal(encode: Encoder, row: Row) -> str | None:
    try:
        encode(row)
    except DataError as error:
        return str(error)
    return None


def agree(ours: list[str], theirs: list[str], prompt: str) -> bool:
    """Whether both supervise the same, but for what the prompt gives and thoughts of old turns."""

    def words(run: str) -> list[str]:
        return re.sub(r"<think>.*?</think>", "", run, flags=re.DOTALL).split()

    return len(ours) == len(theirs) and all(
        our == their
        or words(our) == words(their)
        or (their.endswith(our) and their.removesuffix(our) in prompt)
        or words("<think>" + our) == words(their)
        for our, their in zip(ours, theirs, strict=True)
    )


@pytest.mark.skipif(not NAMES, reason="trl is not installed")
@pytest.mark.parametrize("name", NAMES or ["none"])
def test_what_trl_marks_is_supervised(name: str) -> None:
    template = (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
    tokenizer = tokenizer_for(template)
    special = {*tokenizer.all_special_ids}
    special |= {n for n, token in tokenizer.added_tokens_decoder.items() if token.special}
    spec = CausalLMSpec(messages="messages", tools="tools")
    encode = TASKS["causal_lm"].encoder(tokenizer, spec, 4096, ())
    for kind, messages in KINDS.items():
        tools = TOOLS if "tools" in kind else None
        if kind in ALWAYS_RIGHT:
            example: Any = encode({"messages": messages, "tools": tools})
        elif mistake := refusal(encode, {"messages": messages, "tools": tools}):
            assert re.search(REFUSED, mistake), f"{kind}: {mistake}"
            continue
        else:
            example = encode({"messages": messages, "tools": tools})
        ours = runs(tokenizer, example["input_ids"], example["labels"])
        whole = "".join(ours)
        for message in messages:
            content = message["content"] or ""
            text = content if isinstance(content, str) else "".join(p["text"] for p in content)
            if message["role"] == "assistant":
                assert text.rpartition("</think>")[2].strip() in whole, f"{kind}: {ours}"
            else:
                assert text not in whole, f"{kind}: {ours}"
        for run in ours:
            last = tokenizer(run.rstrip(), add_special_tokens=False)["input_ids"][-1]
            assert last in special, f"{kind}: {run!r} ends in no special token"
        theirs = marked_by_trl(name, tokenizer, messages, tools)
        if theirs is None:
            continue
        if "gemma" in name and tools:  # a call there ends with the token that opens its response
            ours = [run.removesuffix("<|tool_response>") for run in ours]
        prompt = tokenizer.apply_chat_template(
            [user("q")], tokenize=False, add_generation_prompt=True
        )
        assert agree(ours, theirs, prompt + BEHIND_TOOLS), f"{kind}: {ours} != {theirs}"
