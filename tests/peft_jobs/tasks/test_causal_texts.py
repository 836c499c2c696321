"""What a causal model reads beside prompts: plain texts, long ones in parts, and calls of tools."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from peft_jobs.data.tokenized import load_data
from peft_jobs.spec import CausalLMSpec, TrialSpec
from peft_jobs.tasks import IGNORED, TASKS

TASK = TASKS["causal_lm"]
TEXT = CausalLMSpec(text="{text}")
TOOLS = CausalLMSpec(messages="messages", tools="tools")
CHATML = (
    "{% if tools %}<s>system : {{ tools | tojson }} </s>{% endif %}"
    "{% for message in messages %}{{ '<s>' + message['role'] + ' : ' }}"
    "{% if message.tool_calls %}{% for call in message.tool_calls %}"
    "{{ '[call] ' + call.function.name + ' ' + call.function.arguments | tojson }}"
    "{% endfor %}{% else %}{{ message['content'] }}{% endif %}{{ ' </s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant : ' }}{% endif %}"
)


@pytest.fixture
def tokenizer(tiny_llama_path: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_llama_path)


def encode(tokenizer: Any, row: dict[str, Any], spec: Any, max_length: int = 64) -> Any:
    return TASK.encoder(tokenizer, spec, max_length, ())(row)


@pytest.mark.parametrize("max_length", [2, 3, 5, 7, 64])
@pytest.mark.parametrize("opens", [True, False])
def test_every_token_of_a_plain_text_is_supervised_once(
    tokenizer: Any, max_length: int, opens: bool
) -> None:
    if not opens:
        tokenizer.backend_tokenizer.post_processor = None
    text = "the red cat sees a bird \N{BLACK HEART SUIT} good ."
    parts = encode(tokenizer, {"text": text}, TEXT, max_length)
    supervised = [label for part in parts for label in part["labels"] if label != IGNORED]
    whole = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    assert supervised == whole[1:]
    context = [part["input_ids"][0] for part in parts]
    assert context[0] == whole[0]
    for part, before in zip(parts[1:], parts, strict=False):
        assert part["input_ids"][0] == before["input_ids"][-1]
        assert part["labels"][0] == IGNORED
    assert all(2 <= len(part["input_ids"]) <= max_length for part in parts)
    unscored = 0 if opens else len("the")
    assert sum(part["num_bytes"] for part in parts) == len(text.encode()) - unscored


def test_a_text_in_parts_costs_what_each_token_costs_given_its_part(
    tokenizer: Any, llama_base: Any
) -> None:
    model = llama_base("none").model
    parts = encode(tokenizer, {"text": "the red cat sees a bird"}, TEXT, 5)
    assert len(parts) == 2
    expected = 0.0
    for part in parts:
        with torch.no_grad():
            logits = model(torch.tensor([part["input_ids"]])).logits[0].log_softmax(-1)
        for place in range(1, len(part["input_ids"])):
            expected -= logits[place - 1, part["input_ids"][place]].item()
    found = TASK.losses(model, TASK.collate(parts, pad_token_id=0)).sum().item()
    assert found == pytest.approx(expected, rel=1e-5)


def test_an_empty_text_is_named() -> None:
    assert TASK.mistake({"text": " "}, TEXT) == "the text is empty (column 'text')"


@pytest.mark.parametrize("name", ["tinyshakespeare.txt", "tinystories_validation.jsonl"])
def test_real_texts_are_read_whole(shared: Path, tokenizer: Any, tmp_path: Path, name: str) -> None:
    source = shared / "data" / "lm" / name
    if not source.is_file():
        pytest.skip(f"no data at {source}")
    content = {"model": "unused", "task": {"type": "causal_lm", "text": "{text}"}}
    data = {"train": str(source), "validation": 0.5, "max_length": 32, "subset": 100}
    loaded = load_data(TrialSpec.model_validate(content | {"data": data}), tokenizer, tmp_path)
    assert loaded.dropped == {"train": 0, "validation": 0}
    assert len(loaded.train) >= 100
    lines = source.read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"] if name.endswith("l") else line for line in lines]
    supervised = sum(label != IGNORED for labels in loaded.validation["labels"] for label in labels)
    pieces = sum(len(tokenizer(text)["input_ids"]) for text in texts if text.strip())
    assert 0.4 * pieces < supervised < 0.6 * pieces


def test_a_call_of_a_tool_is_a_turn_of_the_assistant(tokenizer: Any) -> None:
    tokenizer.chat_template = CHATML
    call = {"name": "find", "arguments": {"what": "cat"}}
    row = {
        "messages": [
            {"role": "user", "content": "the cat ?"},
            {"role": "tool_call", "content": json.dumps(call)},
            {"role": "tool", "content": "a red cat"},
            {"role": "assistant", "content": "the cat likes red"},
        ],
        "tools": json.dumps([{"name": "find", "parameters": {}}]),
    }
    assert TASK.mistake(row, TOOLS) is None
    example = encode(tokenizer, row, TOOLS, 200)
    supervised = [label for label in example["labels"] if label != IGNORED]
    turns = ('[call] find {"what": "cat"} </s>', "the cat likes red </s>")
    assert supervised == [
        token for turn in turns for token in tokenizer(turn, add_special_tokens=False)["input_ids"]
    ]
    usual = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": call}],
    }
    other = row | {"messages": [row["messages"][0], usual, *row["messages"][2:]]}
    assert encode(tokenizer, other, TOOLS, 200) == example
    tools = [{"type": "function", "function": {"name": "find", "parameters": {}}}]
    whole = tokenizer.apply_chat_template(other["messages"], tools=tools, return_dict=True)
    assert example["input_ids"] == whole["input_ids"]
    without = encode(tokenizer, row, CausalLMSpec(messages="messages"), 200)
    assert len(without["input_ids"]) < len(example["input_ids"])


@pytest.mark.parametrize(
    ("changed", "mistake"),
    [
        ({"tools": "[{"}, "column 'tools' must hold a list of tools, or its JSON text"),
        ({"tools": "[1]"}, "column 'tools' must hold a list of tools"),
        (
            {"messages": [{"role": "tool_call", "content": "find(cat)"}]},
            "message 1 of column 'messages' must hold calls of tools, as JSON with a name",
        ),
    ],
)
def test_calls_and_tools_that_cannot_be_read_are_named(
    changed: dict[str, Any], mistake: str
) -> None:
    row = {"messages": [{"role": "assistant", "content": "a"}], "tools": None}
    assert TASK.mistake(row, TOOLS) is None
    found = TASK.mistake(row | changed, TOOLS)
    assert found is not None
    assert mistake in found


def test_real_calls_of_tools_are_learned(shared: Path, tokenizer: Any, tmp_path: Path) -> None:
    source = shared / "data" / "chat" / "glaive_toolcall_en.jsonl"
    if not source.is_file():
        pytest.skip(f"no data at {source}")
    tokenizer.chat_template = CHATML
    spec = TrialSpec.model_validate(
        {
            "model": "unused",
            "task": {"type": "causal_lm", "messages": "messages", "tools": "tools"},
            "data": {"train": str(source), "validation": 0.5, "max_length": 4000},
        }
    )
    data = load_data(spec, tokenizer, tmp_path)
    assert data.dropped == {"train": 0, "validation": 0}
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    num_turns = sum(m["role"] in ("assistant", "tool_call") for r in rows for m in r["messages"])
    closing = tokenizer.eos_token_id
    both = [*data.train["labels"], *data.validation["labels"]]
    assert sum(labels.count(closing) for labels in both) == num_turns
