"""An example as text: what its tokens spell, special ones too, and which parts are supervised."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from transformers import PreTrainedTokenizerBase

from peft_jobs.spec import Seq2SeqSpec, TokenClassificationSpec, TrialSpec
from peft_jobs.tasks import IGNORED, Example

_CONTEXT = "context"
"""The mark of a token that is not supervised."""
_UNFINISHED = "\ufffd"
"""What tokenizers write for some bytes of a character."""
_MAX_BYTES = 4
"""Of a character in UTF-8."""


@dataclass(frozen=True)
class Part:
    text: str
    supervised: bool
    label: str | None = None
    """The tag of a word, on its first piece."""


@dataclass(frozen=True)
class ExampleText:
    row: int
    """Number of the row in its source, from 1."""
    input: tuple[Part, ...]
    """What the model reads; a generated answer is the supervised part of it."""
    target: tuple[Part, ...] = ()
    """What is to be found where that is no part of the input: classes, or the target of seq2seq."""


def example_text(
    row: int,
    example: Example,
    spec: TrialSpec,
    tokenizer: PreTrainedTokenizerBase,
    classes: Sequence[int | str],
) -> ExampleText:
    """The text of an example, which is of the row with that number."""
    tokens: list[int] = example["input_ids"]
    marks: list[Any] = [_CONTEXT] * len(tokens)
    target: tuple[Part, ...] = ()
    if isinstance(spec.task, Seq2SeqSpec):
        labels = example["labels"]
        target = _parts(tokenizer, labels, [None] * len(labels))
    elif isinstance(spec.task, TokenClassificationSpec):
        tags = enumerate(example["labels"])
        marks = [_CONTEXT if t == IGNORED else (place, str(classes[t])) for place, t in tags]
    elif "labels" in example:
        marks = [_CONTEXT if label == IGNORED else None for label in example["labels"]]
    elif "start" in example:
        inside = range(example["start"], example["end"] + 1)
        marks = [None if place in inside else _CONTEXT for place in range(len(tokens))]
    elif "label" in example:
        target = (Part(_class_text(example["label"], classes), True),)
    return ExampleText(row, _parts(tokenizer, tokens, marks), target)


def _parts(
    tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], marks: Sequence[Any]
) -> tuple[Part, ...]:
    """Runs of tokens with equal marks: the context, None for what is supervised, or a place and its
    tag. Together their texts are that of all tokens."""
    found, done = [], 0
    for mark, run in groupby(marks):
        start, done = done, done + len(list(run))
        text = _text(tokenizer, tokens, start, done)
        tag = mark[1] if isinstance(mark, tuple) else None
        if text:
            found.append(Part(text, mark != _CONTEXT, tag))
    return tuple(found)


def _text(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], start: int, end: int) -> str:
    """What `tokens[start:end]` spell behind those before them: alone, many tokenizers would drop
    the space at their beginning. A character of several tokens belongs to the first of them."""
    before = _whole_characters(tokenizer, tokens, start)
    whole = _whole_characters(tokenizer, tokens, end)
    if whole.startswith(before):
        return whole[len(before) :]
    return _decoded(tokenizer, tokens[start:end])


def _whole_characters(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], end: int) -> str:
    """The text of `tokens[:end]`, and of those that finish its last character."""
    for more in range(_MAX_BYTES):
        text = _decoded(tokenizer, tokens[: end + more])
        if not text.endswith(_UNFINISHED):
            return text
    return _decoded(tokenizer, tokens[:end])


def _decoded(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    return str(tokenizer.decode(list(tokens), clean_up_tokenization_spaces=False))


def _class_text(label: Any, classes: Sequence[int | str]) -> str:
    if isinstance(label, list):
        return ", ".join(str(classes[number]) for number, held in enumerate(label) if held)
    return str(classes[label]) if isinstance(label, int) else str(label)
