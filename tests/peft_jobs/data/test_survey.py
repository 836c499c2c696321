"""What is told of data before training, against plain tokenizers and counters."""

import csv
import json
import logging
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from peft_jobs.data.survey import survey
from peft_jobs.data.tokenized import load_data
from peft_jobs.spec import TrialSpec

ASK = {"type": "causal_lm", "prompt": "{q} ", "response": "{a}"}
CHAT = {"type": "causal_lm", "messages": "m", "chat_template": "zephyr"}
CLASSIFY = {"type": "sequence_classification", "text": "{t}", "label": "y"}
WORDS = ("the", "a", "red", "green", "cat", "dog", "bird")

Survey = Callable[..., dict[str, Any]]


def asked(count: int) -> list[dict[str, Any]]:
    """Questions that are all different, with answers of one to nine words."""
    return [
        {"q": f"the {WORDS[n % 7]} {n}", "a": " ".join(["bird"] * (1 + n % 9))}
        for n in range(count)
    ]


def talk(question: str, answer: str, **more: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"m": [{**turn, **more} for turn in turns]}


@pytest.fixture
def llama(tiny_llama_path: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_llama_path)


@pytest.fixture
def bert(tiny_bert_path: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_bert_path)


@pytest.fixture
def look(tmp_path: Path) -> Survey:
    """(tokenizer, task, train=rows, ...) -> the summary as JSON values gives it back."""

    def write(name: str, rows: Any) -> Any:
        if not isinstance(rows, list):
            return rows
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    def found(
        tokenizer: Any, task: dict[str, Any], max_rows: int | None = None, **data: Any
    ) -> dict[str, Any]:
        data = {name: write(name, value) for name, value in data.items()} | {"on_leak": "warn"}
        spec = TrialSpec.model_validate({"model": "unused", "task": task, "data": data})
        summary = survey(spec, tokenizer, tmp_path / "cache", max_rows).to_dict()
        plain: dict[str, Any] = json.loads(json.dumps(summary))
        return plain

    return found


def test_lengths_are_those_before_any_cut(look: Survey, llama: Any) -> None:
    rows = asked(101)
    summary = look(llama, ASK, train=rows, validation=asked(3), max_length=9)
    lengths = sorted(
        1 + len(llama.tokenize(row["q"])) + len(llama.tokenize(row["a"])) + 1 for row in rows
    )
    found = summary["splits"]["train"]["lengths"]
    assert found["median"] == lengths[50]
    assert found["percentile_95"] == lengths[math.ceil(0.95 * 101) - 1]
    assert found["longest"] == lengths[-1] > 9
    assert found["num_longer"] == found["num_cut"] == sum(n > 9 for n in lengths) > 20
    assert sum(n <= found["limit_for_95_percent"] for n in lengths) >= 0.95 * 101
    assert (found["limit_name"], found["limit"]) == ("data.max_length", 9)
    assert summary["mistakes"] == []


def test_tokens_and_what_is_left_out_are_those_of_training(
    look: Survey, llama: Any, tmp_path: Path
) -> None:
    rows = [*asked(30), {"q": "cat " * 30, "a": "dog"}]
    summary = look(llama, ASK, train=rows, validation=asked(3), max_length=10)
    data = {
        "train": str(tmp_path / "train.jsonl"),
        "validation": str(tmp_path / "validation.jsonl"),
    }
    spec = TrialSpec.model_validate({"model": "-", "task": ASK, "data": {**data, "max_length": 10}})
    trained = load_data(spec, llama, tmp_path / "other")
    split = summary["splits"]["train"]
    assert split["num_examples"] == len(trained.train) == 30
    assert split["num_tokens"] == sum(map(len, trained.train["input_ids"]))
    supervised = sum(label != -100 for labels in trained.train["labels"] for label in labels)
    assert split["num_supervised_tokens"] == supervised
    assert split["unsupervised"] == [31]
    assert split["lengths"]["num_left_out"] == trained.dropped["train"] == 1


def test_plain_texts_go_on_and_are_not_cut(look: Survey, llama: Any) -> None:
    rows = [{"t": "cat " * 30}, {"t": "dog"}, {"t": "bird"}]
    task = {"type": "causal_lm", "text": "{t}"}
    split = look(llama, task, train=rows, validation=rows[1:], max_length=8)["splits"]["train"]
    assert split["lengths"]["longest"] == 32
    assert (split["lengths"]["num_continued"], split["lengths"]["num_cut"]) == (1, 0)
    assert split["num_examples"] == 2 + math.ceil((32 - 1) / 7)
    assert split["num_supervised_tokens"] == 31 + 2 + 2


def test_targets_have_lengths_of_their_own(look: Survey, bert: Any) -> None:
    task = {"type": "seq2seq", "source": "{q}", "target": "{a}", "max_target_length": 4}
    bert.eos_token = "[SEP]"
    rows = asked(40)
    split = look(bert, task, train=rows, validation=asked(2))["splits"]["train"]
    longer = sum(len(bert.tokenize(row["a"])) + 2 > 4 for row in rows)
    assert split["target_lengths"]["num_longer"] == split["target_lengths"]["num_cut"] == longer > 0
    assert split["lengths"]["num_longer"] == 0
    assert split["target_lengths"]["limit_name"] == "task.max_target_length"


def test_classes_are_counted_in_each_split(look: Survey, bert: Any) -> None:
    rows = [{"t": f"cat {n}", "y": ["good", "bad", "red"][n % 5 // 2]} for n in range(50)]
    splits = look(bert, CLASSIFY, train=rows, validation=0.2)["splits"]
    both = Counter({c["name"]: c["count"] for c in splits["train"]["classes"]})
    both.update({c["name"]: c["count"] for c in splits["validation"]["classes"]})
    assert both == Counter(row["y"] for row in rows)
    assert sum(c["share"] for c in splits["train"]["classes"]) == pytest.approx(1)
    assert splits["train"]["num_rows"] == 40
    assert splits["validation"]["num_rows"] == 10


def test_numbers_to_predict_have_statistics(look: Survey, bert: Any) -> None:
    task = {**CLASSIFY, "problem_type": "regression"}
    numbers = [2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.5]
    rows = [{"t": f"the {WORDS[n % 7]} {n}", "y": y} for n, y in enumerate(numbers)]
    summary = look(bert, task, train=rows, validation=rows[:3])
    found = summary["splits"]["train"]["targets"]
    expected = {
        "minimum": np.min(numbers),
        "median": np.median(numbers),
        "mean": np.mean(numbers),
        "maximum": np.max(numbers),
        "sd": np.std(numbers),
    }
    assert found == pytest.approx(expected)
    assert summary["splits"]["validation"]["targets"]["median"] == 4.0
    assert look(bert, CLASSIFY, train=rows, validation=rows)["splits"]["train"]["targets"] is None


def test_a_class_that_no_row_trains_is_told(look: Survey, bert: Any) -> None:
    rows = [{"t": f"cat {n}", "y": ["good", "bad"][n % 2]} for n in range(20)]
    rare = [*rows, {"t": "dog", "y": "rare"}]
    summary = look(bert, CLASSIFY, train=rare, validation=rows[:4], subset=2)
    held = {c["name"] for c in summary["splits"]["train"]["classes"] if c["count"]}
    (warning,) = [text for text in summary["warnings"] if "no row to train on" in text]
    idle = {"good", "bad", "rare"} - held
    assert idle
    assert all(repr(name) in warning for name in idle)


def test_unusable_rows_are_mistakes_or_left_out(look: Survey, llama: Any) -> None:
    rows = [*asked(20), {"q": "the cat", "a": ""}, {"q": "the dog", "a": None}]
    refused = look(llama, ASK, train=rows, validation=0.2)
    assert [line.partition("train.jsonl")[2] for line in refused["mistakes"]] == [
        ", rows 21, 22: the response is empty (column 'a')"
    ]
    splits = look(llama, ASK, train=rows, validation=0.2, on_bad_row="drop")["splits"]
    left = [row for split in splits.values() for rows in split["left_out"].values() for row in rows]
    assert sorted(left) == [21, 22]
    assert sum(split["num_measured"] for split in splits.values()) == 20


def test_every_mistake_is_told_at_once(look: Survey, llama: Any) -> None:
    found = look(
        llama,
        ASK,
        train=[*asked(4), {"q": "the cat", "a": " "}],
        validation=[{"q": "the dog", "b": "a"}] * 3,
        test=asked(2)[:1],
        subset=99,
    )["mistakes"]
    assert len(found) == 3
    assert any("data.subset must be <= 5" in line for line in found)
    assert any("row 5: the response is empty" in line for line in found)
    assert any("uses column 'a'" in line and "validation.jsonl" in line for line in found)


def test_labels_that_are_no_classes_and_a_missing_template_are_mistakes(
    look: Survey, bert: Any, llama: Any
) -> None:
    rows = [{"t": "cat", "y": "good"}, {"t": "dog", "y": "bad"}]
    found = look(bert, CLASSIFY, train=rows, validation=[*rows, {"t": "bird", "y": "odd"}])
    assert any("row 3: label 'odd' in column 'y'" in line for line in found["mistakes"])
    rows = [talk(f"the {n}", "cat") for n in range(4)]
    no_template = {**CHAT, "chat_template": None}
    (line,) = look(llama, no_template, train=rows, validation=rows[:2])["mistakes"]
    assert "needs a tokenizer with a chat template" in line


def test_unread_sources_are_kept_apart_from_mistakes(look: Survey, llama: Any) -> None:
    summary = look(llama, ASK, train="nowhere.jsonl", validation=asked(3))
    assert summary["unread"] == ["data.train: no such file: nowhere.jsonl"]
    assert summary["mistakes"] == []
    assert summary["splits"]["validation"]["num_measured"] == 3


def test_keys_that_a_template_does_not_use_are_told_once_and_not_logged(
    look: Survey, llama: Any, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [talk(f"the {n}", "cat", mood="good") for n in range(6)]
    with caplog.at_level(logging.WARNING):
        summary = look(llama, CHAT, train=rows, validation=0.5)
    (line,) = summary["warnings"]
    assert "does not use the key 'mood'" in line
    assert caplog.text == ""


def test_examples_show_every_token_and_what_is_supervised(look: Survey, llama: Any) -> None:
    first, *rest = look(llama, ASK, train=asked(5), validation=asked(2))["examples"]
    assert [example["row"] for example in rest] == [2, 3]
    tokens = [1, *llama("the the 0")["input_ids"][1:], *llama("bird")["input_ids"][1:], 2]
    assert "".join(part["text"] for part in first["input"]) == llama.decode(tokens)
    assert [part["supervised"] for part in first["input"]] == [False, True]
    assert first["input"][1]["text"].split() == ["bird", "</s>"]


def test_examples_show_tags_classes_and_spans(look: Survey, bert: Any) -> None:
    tagged = [{"w": ["the", "cat"], "t": ["O", "B-cat"]}] * 3
    task = {"type": "token_classification", "tokens": "w", "tags": "t", "tag_names": ["O", "B-cat"]}
    example = look(bert, task, train=tagged, validation=tagged[:2])["examples"][0]
    assert [(p["text"].strip(), p["label"]) for p in example["input"]] == [
        ("[CLS]", None),
        ("the", "O"),
        ("cat", "B-cat"),
        ("[SEP]", None),
    ]
    rows = [{"t": "cat", "y": "good"}, {"t": "dog", "y": "bad"}]
    example = look(bert, CLASSIFY, train=rows, validation=rows)["examples"][1]
    assert example["target"] == [{"text": "bad", "supervised": True, "label": None}]
    answers = {"text": ["red cat"], "answer_start": [4]}
    rows = [{"question": f"the {n}", "context": "the red cat", "answers": answers} for n in "abc"]
    example = look(bert, {"type": "question_answering"}, train=rows, validation=rows)["examples"][0]
    assert [p["text"].strip() for p in example["input"] if p["supervised"]] == ["red cat"]


def test_a_character_of_several_tokens_is_shown_whole(look: Survey) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytewise = Tokenizer(models.BPE({letter: n for n, letter in enumerate(letters)}, []))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytewise, pad_token="<pad>")
    rows = [{"w": ["\u8bf4", "\u4eba"], "t": ["O", "B-x"]}] * 3
    task = {"type": "token_classification", "tokens": "w", "tags": "t"}
    parts = look(tokenizer, task, train=rows, validation=rows[:2])["examples"][0]["input"]
    labelled = [(part["text"], part["label"]) for part in parts if part["supervised"]]
    assert labelled == [("\u8bf4", "O"), ("\u4eba", "B-x")]
    assert "".join(part["text"] for part in parts) == "\u8bf4 \u4eba"


def test_a_sample_is_said_to_be_one(look: Survey, llama: Any) -> None:
    splits = look(llama, ASK, max_rows=7, train=asked(30), validation=asked(5))["splits"]
    assert (splits["train"]["sampled"], splits["train"]["num_measured"]) == (True, 7)
    assert (splits["validation"]["sampled"], splits["validation"]["num_measured"]) == (False, 5)
    assert splits["train"]["num_rows"] == 30


def test_the_same_data_give_the_same_summary(look: Survey, llama: Any) -> None:
    once, again = (look(llama, ASK, train=asked(30), validation=0.2) for _ in range(2))
    assert once == again


def test_real_classes_and_lengths(look: Survey, bert: Any, shared: Path) -> None:
    path = shared / "data" / "cls" / "banking77_test.csv"
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    task = {"type": "sequence_classification", "text": "{text}", "label": "category"}
    split = look(bert, task, train=str(path), validation=str(path))["splits"]["train"]
    assert {c["name"]: c["count"] for c in split["classes"]} == Counter(r["category"] for r in rows)
    lengths = sorted(len(bert(row["text"])["input_ids"]) for row in rows)
    assert split["lengths"]["longest"] == lengths[-1]
    assert split["lengths"]["median"] == lengths[math.ceil(len(rows) / 2) - 1]
