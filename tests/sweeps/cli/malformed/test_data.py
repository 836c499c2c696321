"""Data that cannot be trained on, and a base that has no use for them."""

from collections.abc import Callable
from typing import Any

import pytest

GOOD = [{"a": f"the {n} lamps", "b": f"{n} lamps are lit"} for n in range(6)]
CLASSES = [{"a": "good", "y": 1}, {"a": "bad", "y": 0}] * 3
TURNS = [{"m": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}] * 3
CLASSIFY = {"type": "sequence_classification", "text": "{a}", "label": "y"}
CHAT = {"type": "causal_lm", "messages": "m"}
TAG = {"type": "token_classification", "tokens": "a", "tags": "y"}
TAGGED = [{"a": ["a", "lamp"], "y": ["O", "B-thing"]}] * 3
ANSWER = {"type": "question_answering", "question": "{q}", "context": "c", "answers": "y"}
ANSWERED = [
    {"q": f"which {n} ?", "c": "a red lamp", "y": {"text": ["red"], "answer_start": [2]}}
    for n in range(4)
]

DATA: dict[str, tuple[dict[str, Any], str]] = {
    "a template with an unknown column": (
        {"task": {"type": "causal_lm", "response": "{anwser}"}},
        "task.response uses column 'anwser', which train.jsonl does not have",
    ),
    "a template that reaches for attributes": (
        {"task": {"type": "causal_lm", "response": "{b.__class__}"}},
        "task.response uses column 'b.__class__', which train.jsonl does not have",
    ),
    "a column that only the training rows have": (
        {"validation": [{"a": "x", "c": "y"}] * 3},
        "task.response uses column 'b', which validation.jsonl does not have",
    ),
    "empty rows": (
        {"train": [*GOOD, {"a": "x", "b": ""}, {"a": "x", "b": None}]},
        "train.jsonl, rows 7, 8: the response is empty (column 'b')",
    ),
    "an empty file": ({"train": ""}, "train.jsonl holds no rows"),
    "a file of blank lines": ({"train": "\n\n"}, "train.jsonl holds no rows"),
    "a broken line": ({"train": '{"a": "x"\n'}, "train.jsonl cannot be read as json"),
    "a file of words": ({"train": "hello\n"}, "train.jsonl cannot be read as json"),
    "bytes": ({"train": b"\x00\xff" * 99}, "train.jsonl, line 1: is no UTF-8 text"),
    "another encoding": (
        {"train": '{"a": "x", "b": "y"}\n{"a": "caf\xe9"}\n'.encode("latin-1")},
        "train.jsonl, line 2: is no UTF-8 text",
    ),
    "one row to train on": ({"train": GOOD[:1]}, "data.train must have at least 2 examples, got 1"),
    "one row to validate on": (
        {"validation": GOOD[:1]},
        "data.validation must have at least 2 examples, got 1",
    ),
    "a share of one row": (
        {"train": GOOD[:1], "data": {"validation": 0.5}},
        "data.validation: 0.5 of 1 row leaves nothing to train on",
    ),
    "a subset of more rows than there are": (
        {"data": {"subset": 100}},
        "data.subset must be <= 6, the rows there are, got 100",
    ),
    "examples that are all too long": (
        {"data": {"max_length": 2}},
        "train.jsonl: none of 6 rows has a supervised token within data.max_length = 2",
    ),
    "a folder in place of a file": ({"data": {"train": "base"}}, "data.train: base is a folder"),
    "a file of another kind": ({"data": {"train": "waves.yaml"}}, "must end in one of .json"),
    "data that nobody gives": ({"data": {"train": "nobody/nothing"}}, "cannot be loaded"),
    "one class only": (
        {"task": CLASSIFY, "rows": [{"a": "x", "y": 1}] * 4},
        "train.jsonl: column 'y' holds one class only: 1",
    ),
    "a row without a label": (
        {"task": CLASSIFY, "rows": CLASSES, "train": [*CLASSES, {"a": "x", "y": None}]},
        "train.jsonl, row 7: column 'y' has no label",
    ),
    "labels that are no classes": (
        {"task": CLASSIFY, "rows": [{"a": "x", "y": 0.5}, {"a": "x", "y": 1.5}]},
        "train.jsonl: column 'y' holds numbers with decimals, got 0.5 in row 1: write problem_type",
    ),
    "labels that are lists": (
        {"task": CLASSIFY, "rows": [{"a": "x", "y": [1]}, {"a": "x", "y": [0]}]},
        "train.jsonl, rows 1, 2: column 'y' holds a list or a mapping: task.label is one class",
    ),
    "an unknown label in validation": (
        {"task": CLASSIFY, "rows": CLASSES, "validation": [{"a": "x", "y": 7}] * 3},
        "validation.jsonl, rows 1, 2, 3: label 7 in column 'y' is not among the 2 classes",
    ),
    "labels that are no list": (
        {"task": {**CLASSIFY, "label": None, "labels": "y"}, "rows": CLASSES},
        "train.jsonl, rows 1, 2, 3, 4, 5 and 1 more: column 'y' must hold a list",
    ),
    "flags that are more than 0 and 1": (
        {
            "task": {**CLASSIFY, "label": None, "labels": ["y", "z"]},
            "rows": [{"a": "x", "y": 1, "z": 0}, {"a": "x", "y": 0, "z": 2}] * 2,
        },
        "train.jsonl, rows 2, 4: column 'z' must hold 0 or 1, or true or false",
    ),
    "more words than tags": (
        {"task": TAG, "rows": [*TAGGED, {"a": ["a", "lamp"], "y": ["O"]}]},
        "train.jsonl, row 4: columns 'a' and 'y' must have equal lengths",
    ),
    "a text in place of words": (
        {"task": TAG, "rows": [{"a": "a lamp", "y": ["O", "B-thing"]}] * 3},
        "rows 1, 2, 3: column 'a' must hold a list",
    ),
    "tags without names": (
        {"task": TAG, "rows": [{"a": ["a", "lamp"], "y": [0, 1]}] * 3},
        "task.tag_names: column 'y' holds numbers; give the names of the tags 0 to 1",
    ),
    "a tag that the training rows lack": (
        {"task": TAG, "rows": TAGGED, "validation": [{"a": ["x"], "y": ["B-place"]}] * 3},
        "validation.jsonl, rows 1, 2, 3: tag 'B-place' in column 'y' is not among the 2 tags",
    ),
    "answers that lie elsewhere": (
        {
            "task": ANSWER,
            "rows": [*ANSWERED, {**ANSWERED[0], "y": {"text": ["red"], "answer_start": [3]}}],
        },
        "train.jsonl, row 5: an answer of column 'y' does not lie at its answer_start",
    ),
    "answers that are texts": (
        {"task": ANSWER, "rows": [{**row, "y": "red"} for row in ANSWERED]},
        "column 'y' must hold {text: [...], answer_start: [...]} or a list",
    ),
    "contexts on both sides": (
        {"task": ANSWER, "train": ANSWERED, "data": {"validation": 0.5}},
        "data.group_by: several questions share a context",
    ),
    "one context to hold out": (
        {"task": ANSWER, "train": ANSWERED, "data": {"validation": 0.5, "group_by": "c"}},
        "data.group_by: all rows are of one group",
    ),
    "groups by an unknown column": (
        {"data": {"validation": 0.5, "group_by": "bb"}},
        "data.group_by uses column 'bb', which train.jsonl does not have; did you mean 'b'?",
    ),
    "tools that are no list": (
        {"task": {**CHAT, "tools": "t"}, "rows": [{**TURNS[0], "t": "[{"}] * 3},
        "column 't' must hold a list of tools, or its JSON text",
    ),
    "an empty text": (
        {"task": {"type": "causal_lm", "text": "{b}"}, "rows": [*GOOD, {"a": "x", "b": " "}]},
        "train.jsonl, row 7: the text is empty (column 'b')",
    ),
    "a decoder where an encoder is needed too": (
        {"task": {"type": "seq2seq", "source": "{a}", "target": "{b}"}},
        "has no form for task.type seq2seq",
    ),
    "answers longer than the base": (
        {
            "task": {"type": "causal_lm", "prompt": "{a}", "response": "{b}"},
            "evaluation": {"generation": {"max_new_tokens": 5000}},
        },
        "evaluation.generation.max_new_tokens must be <=",
    ),
    "conversations without a chat template": (
        {"task": CHAT, "rows": TURNS},
        "task.messages needs a tokenizer with a chat template",
    ),
    "a chat template that is not there": (
        {
            "task": {
                "type": "causal_lm",
                "prompt": "{a}",
                "response": "{b}",
                "use_chat_template": True,
            }
        },
        "task.use_chat_template needs a tokenizer with a chat template",
    ),
    "targets that match nothing": (
        {"adapter": {"target_modules": ["q_porj"]}},
        "adapter.target_modules: 'q_porj' matches no module; did you mean 'q_proj'?",
    ),
    "targets of which one matches nothing": (
        {"adapter": {"target_modules": ["q_proj", "nope"]}},
        "adapter.target_modules: 'nope' matches no module",
    ),
    "modules to skip that match nothing": (
        {"quantization": {"scheme": "nf4", "llm_int8_skip_modules": ["nope"]}},
        "quantization.llm_int8_skip_modules: 'nope' matches no module",
    ),
    "a folder that is not there": (
        {"model": "./gone"},
        "model.name_or_path: there is no folder gone",
    ),
    "a file in place of a base": (
        {"model": "waves.yaml"},
        "model.name_or_path: waves.yaml is a file; give the folder that holds a model",
    ),
    "a base that nobody gives": ({"model": "nobody/nothing"}, "neither a folder here nor a model"),
    "an option of the engine of another type": (
        {"resources": {"backend": "inline", "engine_options": {"threads": "many"}}},
        "resources.engine_options.threads: must be a valid integer",
    ),
}


@pytest.mark.parametrize("name", DATA)
def test_what_the_data_do_not_allow(refusal: Callable[..., str], name: str) -> None:
    given, says = DATA[name]
    assert says in refusal(**given)
