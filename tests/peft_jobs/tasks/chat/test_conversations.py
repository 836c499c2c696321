"""Conversations as data sets write them, and templates that a sweep brings along."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from peft_jobs.data.conversations import reader_of
from peft_jobs.errors import DataError, SpecError
from peft_jobs.spec import CausalLMSpec, DataSpec, TrialSpec
from peft_jobs.tasks import TASKS
from peft_jobs.tasks.chat import template_of
from tests.peft_jobs.tasks.chat.test_templates_of_trl import (
    FOLDER,
    NAMES,
    assistant,
    runs,
    user,
)
from tests.support.chat_tokenizers import tokenizer_for

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] }}"
    "{% for call in m.tool_calls %}{{ call.function.name }}{{ call.function.arguments | tojson }}"
    "{% endfor %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SPEC = CausalLMSpec(messages="messages")


def supervised(
    messages: Any, template: str | None = CHATML, spec: Any = SPEC, **cells: Any
) -> list[str]:
    tokenizer = tokenizer_for(template)
    row = {"messages": messages, **cells}
    example: Any = TASKS["causal_lm"].encoder(tokenizer, spec, 4096, ())(row)
    return runs(tokenizer, example["input_ids"], example["labels"])


@pytest.mark.parametrize("key", ["weight", "train", "training", "loss"])
def test_a_turn_that_is_not_to_be_learned_is_context(key: str) -> None:
    bad, good = assistant("GO AWAY"), assistant("Hello!")
    talk = [user("Hi"), {**bad, key: 0}, user("Sorry?"), {**good, key: True}]
    assert supervised(talk) == ["Hello!<|im_end|>\n"]
    assert supervised([user("Hi"), {**bad, key: None}]) == ["GO AWAY<|im_end|>\n"]
    for value, what in ((0.5, "only 0 and 1"), ("no", "only 0 and 1")):
        with pytest.raises(DataError, match=rf"message 2 .* has {key} .*{what}"):
            supervised([user("Hi"), {**bad, key: value}])
    with pytest.raises(DataError, match="only the assistant's turns are learned"):
        supervised([{**user("Hi"), key: 1}, bad])
    with pytest.raises(DataError, match=r"no assistant turn .* is to be learned"):
        supervised([user("Hi"), {**bad, key: 0}])


@pytest.mark.parametrize("key", ["loss_mask", "loss_weight", "masked", "trainable", "train_detail"])
def test_other_keys_that_speak_of_the_loss_are_refused(key: str) -> None:
    talk = [user("Hi"), {**assistant("GO AWAY"), key: 0}, user("Sorry?"), assistant("Hello!")]
    with pytest.raises(DataError, match=rf"message 2 .* has {key}, which cannot be obeyed; write"):
        supervised(talk)
    talk[1] = {**assistant("Well"), key: None}
    assert supervised(talk) == ["Well<|im_end|>\n", "Hello!<|im_end|>\n"]


def test_marks_of_a_template_are_obeyed_with_weights() -> None:
    words = (
        "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
    )
    words += "{% else %}{{ m.content }}<|im_end|>{% endif %}"
    marked = "{% for m in messages %}<|im_start|>{{ m.role }}\n" + words + "{% endfor %}"
    talk = [user("Hi"), {**assistant("GO AWAY"), "weight": 0}, user("?"), assistant("Hello!")]
    assert supervised(talk, marked) == ["Hello!<|im_end|>"]


@pytest.mark.parametrize(
    "arguments",
    [{"town": "Rome", "unit": None}, '{"town": "Rome", "unit": null}'],
    ids=["object", "text"],
)
def test_arguments_are_objects_whichever_way_they_came(arguments: Any) -> None:
    expected = ['weather{"town": "Rome", "unit": null}<|im_end|>\n']
    call = {"name": "weather", "arguments": arguments}
    usual = {"id": "1", "type": "function", "function": call}
    for turn in (
        {"role": "assistant", "content": None, "tool_calls": [usual]},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "assistant", "tool_calls": json.dumps([usual])},
        {"role": "assistant", "content": None, "function_call": call},
        {"role": "tool_call", "content": json.dumps(call)},
    ):
        assert supervised([user("Weather?"), turn]) == expected, turn


NUMBERS = (
    '{"price": 5.50, "list": [1e5, 1E-7, 5.500, 5.5, 0.0, 0.00], "max": 1e999, "none": -0, '
    '"n": 12, "long": 12345678901234567890, "text": "5.50"}'
)


def test_numbers_of_arguments_are_as_they_are_written() -> None:
    call = {"name": "order", "arguments": NUMBERS}
    turn = {"role": "assistant", "content": "", "tool_calls": [call, call]}
    near = "At 5.500000000000001 or 100000.00000000001?"
    talk = [user("Buy"), turn, user(near), assistant(near)]
    expected = [f"order{NUMBERS}" * 2 + "<|im_end|>\n", f"{near}<|im_end|>\n"]
    assert supervised(talk) == expected
    assert supervised(talk, CHATML.replace(" | tojson", "")) == expected
    price = CHATML.replace("arguments | tojson", "arguments.price ~ '.'")
    assert supervised(talk, price)[0] == "order5.50." * 2 + "<|im_end|>\n"
    marked = CHATML.replace("m['content'] }}", "m['content'] }}" + "{% generation %}", 1)
    marked = marked.replace("{{ '<|im_end|>\\n' }}", "{{ '<|im_end|>\\n' }}{% endgeneration %}")
    found = supervised([user("Buy"), turn], marked.replace("m['role'] + '\\n' + ", ""))
    assert found[-1] == expected[0]


def test_arguments_are_text_for_templates_that_join_or_print_them() -> None:
    talk = [user("Weather?"), assistant("", {"town": "Rome", "n": 1})]
    expected = ['weather{"town": "Rome", "n": 1}<|im_end|>\n']
    for body in ("{{ '' + call.function.arguments }}", "{{ call.function.arguments }}"):
        template = CHATML.replace("{{ call.function.arguments | tojson }}", body)
        assert supervised(talk, template) == expected


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        ({"tool_calls": [{"function": {"arguments": {}}}]}, "JSON with a name and arguments"),
        (
            {"tool_calls": [{"name": "f", "arguments": "x=1"}]},
            "'f' with arguments that are no JSON",
        ),
        ({"content": [{"type": "image", "url": "x"}]}, "parts of the type text; got"),
        ({"content": {"a": 1}}, "parts of the type text; got"),
    ],
)
def test_what_a_message_cannot_hold_is_named(turn: Any, message: str) -> None:
    talk = [user("Hi"), {"role": "assistant", "content": "", **turn}]
    with pytest.raises(DataError, match=f"message 2 of column 'messages' .*{message}"):
        supervised(talk)
    found = TASKS["causal_lm"].mistake({"messages": talk}, SPEC)
    assert found is not None
    assert message.partition(".*")[0] in found


def test_what_the_template_drops_is_a_mistake() -> None:
    roles = "{% if m['role'] in ('user', 'assistant') %}"
    template = CHATML.replace("{{ '<|im_start|>'", roles + "{{ '<|im_start|>'", 1)
    template = template.replace("{{ '<|im_end|>\\n' }}", "{{ '<|im_end|>\\n' }}{% endif %}")
    talk = [{"role": "system", "content": "Be brief."}, user("Hi"), assistant("Hello!")]
    with pytest.raises(DataError, match=r"drops the words of message 1 \(role 'system'\)"):
        supervised(talk, template)
    hides = CHATML.replace("m['content']", "(m['content'] if m.role == 'user' else '')")
    with pytest.raises(DataError, match=r"drops the words of message 2 \(role 'assistant'\)"):
        supervised(talk[1:], hides)
    with pytest.raises(DataError, match=r"has the role 'human'; say in data\.roles"):
        supervised([{"role": "human", "content": "Hi"}, assistant("Hello!")])
    with pytest.raises(DataError, match=r"no assistant turn .* it has 'human', 'gpt'"):
        supervised([{"role": "human", "content": "Hi"}, {"role": "gpt", "content": "Hello!"}])


@pytest.mark.skipif(not NAMES, reason="trl is not installed")
@pytest.mark.parametrize("name", ["llama3_1", "llama3_2"])
def test_words_that_a_template_drops_beside_a_call_are_told_with_the_remedy(name: str) -> None:
    template = (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
    talk = [user("Weather?"), assistant("Let me look.", {"town": "Rome"})]
    plain = tokenizer_for(template).apply_chat_template(talk, tokenize=False)
    assert "Rome" in plain
    assert "Let me look." not in plain
    told = r"drops the words beside the tool calls of message 2 .* or leave them out of the data"
    with pytest.raises(DataError, match=told):
        supervised(talk, template)
    assert "Rome" in "".join(supervised([talk[0], {**talk[1], "content": ""}], template))


def test_another_message_among_the_words_is_a_mistake() -> None:
    repeats = CHATML.replace(
        "m['content'] }}",
        "(messages[loop.index0 - 1].content if not loop.first else '') + m['content'] }}",
    )
    with pytest.raises(DataError, match=r"puts message 1 \(role 'user'\) among"):
        supervised([user("Hi?"), assistant("Hello!")], repeats)
    no_arguments = CHATML.replace("{{ call.function.arguments | tojson }}", "()")
    with pytest.raises(DataError, match="'Rome' do not come through"):
        supervised([user("Weather?"), assistant("", {"town": "Rome"})], no_arguments)


def test_a_turn_without_words_is_no_answer() -> None:
    for turn in (
        {"content": "", "id": "m1", "timestamp": 5},
        {"content": "</s>"},
        {"content": " "},
    ):
        with pytest.raises(DataError, match="the response is empty"):
            supervised([user("Hi"), {"role": "assistant", **turn}])
    refused = {"role": "assistant", "content": None, "refusal": "I cannot."}
    assert supervised([user("Hi"), refused]) == ["I cannot.<|im_end|>\n"]


def test_white_space_that_a_tokenizer_trims_from_offsets_is_supervised() -> None:
    from tokenizers import processors

    tokenizer = tokenizer_for(CHATML)
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    row = {"messages": [user("Code?"), assistant("def f():\n     return  1")]}
    example: Any = TASKS["causal_lm"].encoder(tokenizer, SPEC, 4096, ())(row)
    text = "".join(runs(tokenizer, example["input_ids"], example["labels"]))
    assert text == "def f():\n     return  1<|im_end|>\n"


def test_bytes_are_those_of_the_text_that_is_scored() -> None:
    def num_bytes(talk: Any, template: str = CHATML, max_length: int = 4096) -> int:
        tokenizer = tokenizer_for(template)
        example: Any = TASKS["causal_lm"].encoder(tokenizer, SPEC, max_length, ())
        return int(example({"messages": talk})["num_bytes"])

    talk = [user("Ho"), assistant("H\u00e9!"), user("?"), assistant("Ja")]
    assert num_bytes(talk) == (1 + 2 + 1) + 1 + 2 + 1  # a line behind <|im_end|>, which is none
    prompt = 1 + len("user\nHo") + 2 + 1 + len("assistant\n")  # special tokens are one each
    assert num_bytes(talk, max_length=prompt + 3) == 3  # H and the two bytes of the letter
    bare = "{% for m in messages %}{{ m.content + eos_token }}{% endfor %}"
    assert num_bytes([assistant("Hello!")], bare) == len("ello!")  # nothing predicts the first
    thoughts = "<think>\na\n</think>\n\nJa"
    assert num_bytes([user("Ho"), assistant(thoughts)]) == len(thoughts) + 1


def test_what_is_no_text_is_a_mistake() -> None:
    with pytest.raises(DataError, match="half of a character"):
        supervised([user("Hi \ud83d"), assistant("Hello!")])
    tokenizer = tokenizer_for("{% for m in messages %}{{ m.content }")
    with pytest.raises(SpecError, match=r"task\.chat_template: line 1 of the template"):
        TASKS["causal_lm"].encoder(tokenizer, SPEC, 4096, ())


def test_an_answer_ends_where_generation_stops() -> None:
    open_ended = CHATML.replace("<|im_end|>\\n", "\\n").replace("<|im_start|>", "### ")
    with pytest.raises(DataError, match=r"no special token ends message 2, .* task\.chat_template"):
        supervised([user("Hi"), assistant("Hello!")], open_ended)
    # As in GLM, the next speaker's token ends a turn, and is added behind the last one.
    glm = CHATML.replace("<|im_end|>\\n", "").replace(
        "'<|im_start|>' + m['role']", "'<|' + m['role'] + '|>'"
    )
    glm = glm.replace("<|im_start|>assistant", "<|assistant|>") + "{# <|user|> #}"
    talk = [user("Hi"), assistant("Hello!"), user("Bye"), assistant("Bye.")]
    assert supervised(talk, glm) == ["Hello!<|user|>", "Bye.<|user|>"]


def test_bos_and_eos_stand_once_in_a_row() -> None:
    zephyr = template_of(tokenizer_for(None), "zephyr")
    talk = [user("<s>Hi"), assistant("Hello!</s>")]
    tokenizer = tokenizer_for(zephyr)
    example: Any = TASKS["causal_lm"].encoder(tokenizer, SPEC, 4096, ())({"messages": talk})
    text = tokenizer.decode(example["input_ids"])
    assert text == "<s><|user|>\n<s>Hi</s>\n<|assistant|>\nHello!</s>\n"
    assert runs(tokenizer, example["input_ids"], example["labels"]) == ["Hello!</s>\n"]


def test_keys_that_the_template_does_not_use_are_told(caplog: pytest.LogCaptureFixture) -> None:
    talk = [{**user("Hi"), "author": "Ada"}, {**assistant("Hello!"), "reasoning_content": "polite"}]
    with caplog.at_level(logging.WARNING), pytest.raises(DataError, match="'polite' do not come"):
        supervised(talk)
    assert "does not use the key 'author'" in caplog.text
    assert "does not use the key 'reasoning_content'" in caplog.text


@pytest.mark.parametrize("given", ["chatml", "zephyr", "file", "text"])
def test_a_base_without_a_template_is_given_one(given: str, tmp_path: Path) -> None:
    if given == "file":
        (tmp_path / "own.jinja").write_text(CHATML, encoding="utf-8")
    chosen = {"file": str(tmp_path / "own.jinja"), "text": CHATML}.get(given, given)
    spec = CausalLMSpec(messages="messages", chat_template=chosen)
    end = "</s>" if given == "zephyr" else "<|im_end|>"
    tokenizer = tokenizer_for("<|im_start|><|im_end|><|user|><|assistant|>")
    tokenizer.chat_template = None
    row = {"messages": [user("Hi"), assistant("Hello!")]}
    example: Any = TASKS["causal_lm"].encoder(tokenizer, spec, 4096, ())(row)
    (run,) = runs(tokenizer, example["input_ids"], example["labels"])
    assert run.strip() == f"Hello!{end}"
    assert spec.chat_template == (CHATML if given in ("file", "text") else given)


def test_a_template_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"none\.jinja cannot be read"):
        CausalLMSpec(messages="m", chat_template=str(tmp_path / "none.jinja"))
    with pytest.raises(ValidationError, match="goes with `messages` or `use_chat_template`"):
        CausalLMSpec(prompt="{q}", response="{a}", chat_template="chatml")
    with pytest.raises(
        SpecError, match=r"task\.chat_template must be a name.*did you mean 'chatml'"
    ):
        template_of(tokenizer_for(None), "chatlm")
    tokenizer = tokenizer_for(None)
    tokenizer.chat_template = {"rag": CHATML, "default": CHATML.replace("im_end", "eot")}
    assert template_of(tokenizer, "rag") == CHATML


SHAREGPT = [
    {"from": "human", "value": "Weather?"},
    {"from": "function_call", "value": '{"name": "weather", "arguments": {"town": "Rome"}}'},
    {"from": "observation", "value": "sunny"},
    {"from": "gpt", "value": "It is sunny."},
]
TALK = [
    user("Weather?"),
    {"role": "tool_call", "content": SHAREGPT[1]["value"]},
    {"role": "tool", "content": "sunny"},
    assistant("It is sunny."),
]


def read(data: dict[str, Any], row: dict[str, Any]) -> Any:
    return reader_of(DataSpec.model_validate({"train": "x.jsonl", **data}), SPEC)(row)["messages"]


def test_other_forms_give_the_same_conversation() -> None:
    assert read({"format": "sharegpt"}, {"messages": SHAREGPT}) == TALK
    with_system = read({"format": "sharegpt"}, {"messages": SHAREGPT, "system": "Be brief."})
    assert with_system == [{"role": "system", "content": "Be brief."}, *TALK]
    keys = {"role": "speaker", "content": "words"}
    spoken = [{"speaker": "bot", "words": "Hi"}, {"speaker": "me", "words": "Ho"}]
    assert read(
        {"keys": keys, "roles": {"bot": "assistant", "me": "user"}}, {"messages": spoken}
    ) == [
        assistant("Hi"),
        user("Ho"),
    ]
    row = {"instruction": "Add.", "input": "2, 3", "output": "5", "history": '[["Hi", "Hello!"]]'}
    assert read({"format": "alpaca"}, row) == [
        *(user("Hi"), assistant("Hello!")),
        *(user("Add.\n2, 3"), assistant("5")),
    ]
    renamed = {"question": "Add.", "answer": "5", "system": "Be exact."}
    assert read(
        {"format": "alpaca", "keys": {"instruction": "question", "output": "answer"}}, renamed
    ) == [
        {"role": "system", "content": "Be exact."},
        *(user("Add."), assistant("5")),
    ]


@pytest.mark.parametrize("history", [[{"instruction": "i", "output": "o"}], ["ab"], [["a"]], "no"])
def test_a_history_holds_pairs(history: Any) -> None:
    row = {"instruction": "Add.", "output": "5", "history": history}
    with pytest.raises(DataError, match=r"column 'history' must hold a list of \[question, answer"):
        read({"format": "alpaca"}, row)


def test_forms_are_for_conversations() -> None:
    content = {"model": "m", "data": {"train": "x.jsonl", "format": "alpaca"}}
    task = {"type": "causal_lm", "prompt": "{q}", "response": "{a}"}
    with pytest.raises(ValidationError, match=r"data\.format is for conversations"):
        TrialSpec.model_validate({**content, "task": task})
    with pytest.raises(
        ValidationError, match=r"keys of data\.format openai are role, content; got x"
    ):
        DataSpec.model_validate({"train": "x.jsonl", "keys": {"x": "y"}})
