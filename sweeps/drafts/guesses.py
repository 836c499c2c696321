"""Guesses from the first rows of a file what is learned, and which columns hold it.

Columns are taken by their usual names, and only where their cells have the form that the task
wants; nothing is taken by its place in the file.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from peft_jobs import SpecError
from sweeps.drafts.first_rows import Row

_PAIRS = (
    *(("prompt", "completion"), ("prompt", "response"), ("prompt", "output"), ("prompt", "answer")),
    *(("instruction", "response"), ("instruction", "output"), ("question", "answer")),
    *(
        ("question", "response"),
        ("query", "response"),
        ("query", "answer"),
        ("problem", "solution"),
    ),
    *(("input", "output"), ("input", "target"), ("source", "target"), ("mr", "ref")),
    *(("document", "summary"), ("article", "highlights"), ("article", "summary")),
    *(("dialogue", "summary"), ("text", "summary")),
)
_TEXT_PAIRS = (
    *(("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2")),
    *(("question", "sentence"), ("text1", "text2"), ("text", "text_pair")),
)
_CONVERSATIONS = ("messages", "conversations", "conversation", "chat", "dialog")
_TEXTS = ("text", "sentence", "content", "review", "tweet", "utterance", "comment")
_LABELS = ("label", "labels", "category", "class", "intent", "sentiment", "topic", "score")
_TOKENS = ("tokens", "words")
_TAGS = ("ner_tags", "tags", "labels", "pos_tags", "chunk_tags")


@dataclass(frozen=True)
class Guess:
    """The sections `task` and `data` as far as the rows tell them."""

    task: dict[str, Any]
    data: dict[str, Any] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()
    """What the rows do not tell, a line each."""


def guess(rows: Sequence[Row], task: str | None) -> Guess:
    """What `rows` are for: the most particular task that fits, or `task` alone.

    SpecError, with the columns there are, where nothing fits.
    """
    columns = list(dict.fromkeys(name for row in rows for name in row))
    if {"chosen", "rejected"} <= set(columns) and task in (None, "causal_lm"):
        told = "chosen and rejected are preferences, which are not trained on"
        raise SpecError(f"--data: {told}; columns: {', '.join(columns)}")
    found = (each for reader in _GUESSERS for each in reader(rows, columns))
    fitting = (each for each in found if task is None or each.task["type"] == task)
    if (first := next(fitting, None)) is not None:
        return first
    wanted = f" for the task {task}" if task is not None else ""
    raise SpecError(
        f"--data: no columns{wanted} with a name and a form that are known; there are "
        f"{', '.join(columns)}; write the file without --data, and name them in `task`"
    )


def _spans(rows: Sequence[Row], columns: list[str]) -> Iterator[Guess]:
    if {"question", "context", "answers"} <= set(columns) and _all(rows, "answers", _is_answers):
        yield Guess({"type": "question_answering", "question": "{question}"})


def _is_answers(cell: Any) -> bool:
    if isinstance(cell, dict):
        return {"text", "answer_start"} <= cell.keys()
    return isinstance(cell, list) and all(
        isinstance(each, dict) and {"text", "answer_start"} <= each.keys() for each in cell
    )


def _words(rows: Sequence[Row], columns: list[str]) -> Iterator[Guess]:
    for tokens in _among(columns, _TOKENS):
        for tags in _among(columns, _TAGS):
            lengths = [_length(row.get(tokens)) == _length(row.get(tags)) for row in rows]
            if not _all(rows, tokens, _list_of(str)) or not all(lengths):
                continue
            task = {"type": "token_classification", "tokens": tokens, "tags": tags}
            named = _all(rows, tags, _list_of(str))
            told = "the names of the tags, which are numbers: give `task.tag_names`"
            yield Guess(task, unknown=() if named else (told,))


def _chats(rows: Sequence[Row], columns: list[str]) -> Iterator[Guess]:
    forms = {"openai": ("role", "content"), "sharegpt": ("from", "value")}
    for column in _among(columns, _CONVERSATIONS):
        for form, (role, content) in forms.items():
            # a turn that calls tools may have no content
            if _all(rows, column, _list_of(dict)) and all(
                role in turn and (content in turn or "tool_calls" in turn)
                for row in rows
                for turn in row.get(column) or []
            ):
                tools = {"tools": "tools"} if "tools" in columns else {}
                task = {"type": "causal_lm", "messages": column, **tools}
                yield Guess(task, {} if form == "openai" else {"format": form})
    if {"instruction", "input", "output"} <= set(columns):
        yield Guess({"type": "causal_lm", "messages": "messages"}, {"format": "alpaca"})


def _labelled(rows: Sequence[Row], columns: list[str]) -> Iterator[Guess]:
    pairs = [pair for pair in _TEXT_PAIRS if set(pair) <= set(columns)]
    texts: Sequence[tuple[str, ...]] = pairs or [(name,) for name in _among(columns, _TEXTS)]
    for label in _among(columns, _LABELS):
        for text in texts:
            task = {"type": "sequence_classification", "text": f"{{{text[0]}}}"}
            task |= {"text_pair": f"{{{text[1]}}}"} if len(text) > 1 else {}
            if _all(rows, label, lambda cell: isinstance(cell, list)):
                yield Guess({**task, "labels": label})
            elif _all(rows, label, _is_number) and any(
                _is_fraction(row.get(label)) for row in rows
            ):
                yield Guess({**task, "label": label, "problem_type": "regression"})
            elif _all(rows, label, lambda cell: not isinstance(cell, dict | list)):
                yield Guess({**task, "label": label})


def _pairs(rows: Sequence[Row], columns: list[str]) -> Iterator[Guess]:
    for prompt, response in _PAIRS:
        if all(name in columns and _all(rows, name, _is_text) for name in (prompt, response)):
            task = {"prompt": f"{{{prompt}}}\n", "response": f"{{{response}}}"}
            yield Guess({"type": "causal_lm", **task})
            task = {"source": f"{{{prompt}}}", "target": f"{{{response}}}"}
            yield Guess({"type": "seq2seq", **task})


def _plain(rows: Sequence[Row], columns: list[str]) -> Iterator[Guess]:
    for text in _among(columns, _TEXTS):
        if _all(rows, text, _is_text):
            yield Guess({"type": "causal_lm", "text": f"{{{text}}}"})


_GUESSERS = (_spans, _words, _chats, _labelled, _pairs, _plain)
"""The most particular forms first: a text beside a label is classified."""


def _among(columns: Sequence[str], names: Sequence[str]) -> list[str]:
    return [name for name in names if name in columns]


def _all(rows: Sequence[Row], column: str, fits: Callable[[Any], bool]) -> bool:
    """Whether every cell that is there fits, and there is one."""
    cells = [row[column] for row in rows if row.get(column) is not None]
    return bool(cells) and all(map(fits, cells))


def _list_of(kind: type) -> Callable[[Any], bool]:
    return lambda cell: isinstance(cell, list) and all(isinstance(each, kind) for each in cell)


def _length(cell: Any) -> int | None:
    return len(cell) if isinstance(cell, list) else None


def _is_text(cell: Any) -> bool:
    return isinstance(cell, str)


def _is_number(cell: Any) -> bool:
    try:
        return math.isfinite(float(cell))
    except (TypeError, ValueError):
        return False


def _is_fraction(cell: Any) -> bool:
    return _is_number(cell) and not float(cell).is_integer()
