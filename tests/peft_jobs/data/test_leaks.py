"""Held-out rows whose input is trained on too are found, and a column that keeps them together."""

import json
from pathlib import Path
from typing import Any

import pytest

from peft_jobs.data import leaks
from peft_jobs.data.leaks import INPUTS, Leak, find_leak, leaks_of, refusal
from peft_jobs.data.selection import select
from peft_jobs.data.tokenized import load_data
from peft_jobs.spec import TASK_SPECS, TrialSpec
from peft_jobs.tasks import TASKS

ASK = {"type": "causal_lm", "prompt": "{q}", "response": "{a}"}


def leak_of(folder: Path, task: dict[str, Any], **data: Any) -> Leak | None:
    for name, rows in data.items():
        if isinstance(rows, list):
            path = folder / f"{name}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            data[name] = str(path)
    spec = TrialSpec.model_validate({"model": "unused", "task": task, "data": data})
    train, held = (select(spec.data, split, folder) for split in ("train", "validation"))
    return find_leak(spec, train, held)


def repeated(count: int = 40) -> list[dict[str, Any]]:
    """Questions that come twice, each time with another answer."""
    return [{"id": n, "q": f"question {n // 2}", "a": f"answer {n}"} for n in range(count)]


def test_equal_inputs_are_found_whatever_the_answer(tmp_path: Path) -> None:
    train = [{"q": f"question {n}", "a": "yes"} for n in range(10)]
    held = [{"q": "question 3", "a": "no"}, {"q": " question 4", "a": "yes"}, {"q": "x", "a": "y"}]
    leak = leak_of(tmp_path, ASK, train=train, validation=held)
    assert leak is not None
    assert (leak.num_rows, leak.num_identical, leak.pairs) == (2, 1, ((1, 4), (2, 5)))
    assert leak.group_by is None
    assert "take them out of one of the two sources" in leak.message


def test_different_inputs_are_no_leak(tmp_path: Path) -> None:
    train = [{"q": f"question {n}", "a": "yes"} for n in range(10)]
    assert leak_of(tmp_path, ASK, train=train, validation=0.3) is None


def test_the_proposed_column_ends_the_leak(tmp_path: Path) -> None:
    leak = leak_of(tmp_path, ASK, train=repeated(), validation=0.3)
    assert leak is not None
    assert leak.group_by == "q"
    assert "write data.group_by: q" in leak.message
    assert leak_of(tmp_path, ASK, train=repeated(), validation=0.3, group_by="q") is None


def test_the_finest_of_several_columns_is_proposed(tmp_path: Path) -> None:
    rows = [{**row, "kind": f"kind {n // 20}"} for n, row in enumerate(repeated(80))]
    task = {**ASK, "prompt": "{kind}: {q}"}
    leak = leak_of(tmp_path, task, train=rows, validation=0.3)
    assert leak is not None
    assert leak.group_by == "q"


def test_a_column_that_is_no_input_must_tell_rows_apart(tmp_path: Path) -> None:
    """Two kinds hold any pair together, and would be no hold-out."""
    rows = [{"m": turns(f"question {n // 2}", f"{n}"), "kind": n // 20} for n in range(40)]
    task = {"type": "causal_lm", "messages": "m", "chat_template": "zephyr"}
    leak = leak_of(tmp_path, task, train=rows, validation=0.3)
    assert leak is not None
    assert leak.group_by is None
    rows = [{**row, "thread": n // 2} for n, row in enumerate(rows)]
    leak = leak_of(tmp_path, task, train=rows, validation=0.3)
    assert leak is not None
    assert leak.group_by == "thread"
    assert leak_of(tmp_path, task, train=rows, validation=0.3, group_by="thread") is None


def turns(*texts: str) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]


def test_a_conversation_is_its_messages_before_the_last_answer(tmp_path: Path) -> None:
    task = {"type": "causal_lm", "messages": "m", "chat_template": "zephyr"}
    train = [{"m": turns("a", "b", "c", "d")}, {"m": turns("e", "f")}]
    held = [{"m": turns("a", "b", "c", "z")}, {"m": turns("a", "b")}, {"m": turns("e", "f")}]
    leak = leak_of(tmp_path, task, train=train, validation=held)
    assert leak is not None
    assert (leak.num_rows, leak.num_identical) == (2, 1)
    assert leak.pairs == ((1, 1), (3, 2))


def test_a_context_is_the_input_of_its_questions(tmp_path: Path) -> None:
    answers = {"text": ["red"], "answer_start": [0]}
    rows = [{"question": f"q{n}", "context": f"red {n % 3}", "answers": answers} for n in range(6)]
    task = {"type": "question_answering"}
    leak = leak_of(tmp_path, task, train=rows[:4], validation=rows[4:])
    assert leak is not None
    assert (leak.num_rows, leak.num_identical) == (2, 0)
    assert "have a context" in leak.message


def test_a_prompt_without_columns_is_no_input(tmp_path: Path) -> None:
    task = {**ASK, "prompt": "Write a line.", "response": "{a}"}
    rows = [{"a": f"line {n}"} for n in range(8)]
    assert leak_of(tmp_path, task, train=rows, validation=[{"a": "another"}]) is None


def test_lists_of_words_are_inputs_and_groups(tmp_path: Path) -> None:
    rows = [{"tokens": ["a", f"w{n // 2}"], "tags": ["O", "B-x"]} for n in range(20)]
    task = {"type": "token_classification"}
    leak = leak_of(tmp_path, task, train=rows, validation=0.3)
    assert leak is not None
    assert leak.group_by == "tokens"
    assert leak_of(tmp_path, task, train=rows, validation=0.3, group_by="tokens") is None


def test_rows_that_cannot_be_used_do_not_count(tmp_path: Path) -> None:
    rows = [{"q": "same", "a": "x"}, {"q": "same", "a": ""}, {"q": "other", "a": "y"}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"train": str(path), "validation": str(path)}
    spec = TrialSpec.model_validate({"model": "unused", "task": ASK, "data": data})
    train, held = (select(spec.data, split, tmp_path) for split in ("train", "validation"))
    leak = find_leak(spec, train, held, {2}, {2, 3})
    assert leak is not None
    assert (leak.num_rows, leak.num_identical) == (1, 1)


@pytest.mark.parametrize("name", TASK_SPECS)
def test_every_task_names_its_inputs(name: str) -> None:
    fields = {
        "causal_lm": ASK,
        "sequence_classification": {"text": "{t}", "text_pair": "{u}", "label": "y"},
        "seq2seq": {"source": "{s}", "target": "{t}"},
    }.get(name, {})
    spec = TASK_SPECS[name].model_validate({"type": name, **fields})
    used = TASKS[name].columns(spec)
    assert used.keys() & {*INPUTS, "task.context"}
    assert used.keys() - {*INPUTS, "task.context"}


@pytest.mark.parametrize(("copied", "refused"), [(20, True), (5, True), (4, False), (0, False)])
def test_rows_that_are_trained_on_whole_are_refused_beyond_a_fifth(
    tmp_path: Path, copied: int, refused: bool
) -> None:
    train = [{"q": f"question {n}", "a": "yes"} for n in range(30)]
    held = [{"q": f"question {n}", "a": "yes" if n < copied else "no"} for n in range(20)]
    leak = leak_of(tmp_path, ASK, train=train, validation=held)
    assert leak is not None
    assert (leak.num_rows, leak.num_identical, leak.share_identical) == (20, copied, copied / 20)
    data = {"train": "t.jsonl", "validation": "v.jsonl"}
    spec = TrialSpec.model_validate({"model": "unused", "task": ASK, "data": data})
    reason = refusal(spec, leak)
    assert (reason is not None) == refused
    assert not refused or "20 of 20 validation rows have an input" in str(reason)
    assert refusal(spec.with_params({"data.on_leak": "warn"}), leak) is None


def test_a_leak_among_the_rows_that_are_used_is_found_once(
    tmp_path: Path, tiny_llama_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoTokenizer

    rows = [{"q": f"{['red', 'green', 'blue'][n % 3]}", "a": f"cat {n}"} for n in range(40)]
    rows[0]["a"] = ""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"train": str(path), "validation": 0.25, "on_bad_row": "drop"}
    spec = TrialSpec.model_validate({"model": "unused", "task": ASK, "data": data})
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama_path)
    tokenizer.pad_token = tokenizer.eos_token
    held = load_data(spec, tokenizer, tmp_path / "cache")
    (leak,) = leaks_of(spec, held, tmp_path / "cache")
    assert leak.num_rows == len(held.validation)
    assert f"{len(held.validation)} of {len(held.validation)} validation rows" in leak.message
    monkeypatch.setattr(leaks, "find_leak", None)
    assert leaks_of(spec, held, tmp_path / "cache")[0].message == leak.message
