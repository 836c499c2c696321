"""How long the rows of a split are in tokens, and what the limits make of those that are longer.

A row is encoded twice, by the encoder that training uses: with a limit that nothing reaches, which
gives its length, and with the limit of the spec, which gives what is trained on.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from peft_jobs.data.classes import row_encoder
from peft_jobs.data.labels import Labels
from peft_jobs.data.sources import Rows
from peft_jobs.errors import DataError
from peft_jobs.spec import Seq2SeqSpec, TrialSpec
from peft_jobs.tasks import IGNORED, Encoder, Example, Row

UNLIMITED = 10**9
"""Tokens; no row is so long."""
_MULTIPLE = 8
"""Limits that are proposed are multiples of it, as GPUs like their shapes."""
_NUM_EXAMPLES = 3


@dataclass(frozen=True)
class Lengths:
    """Tokens of rows before any cut, and of their targets where these are apart (seq2seq)."""

    limit_name: str
    """`data.max_length` or `task.max_target_length`."""
    limit: int
    median: int
    percentile_95: int
    """95 % of the rows are not longer."""
    longest: int
    num_longer: int
    """Rows above the limit: `num_cut`, `num_left_out` and `num_continued` together."""
    num_cut: int
    num_left_out: int
    """Rows that have no supervised token within the limit."""
    num_continued: int
    """Rows that go on in further examples: plain texts, and contexts that are searched."""
    limit_for_95_percent: int
    """A limit that keeps 95 % of the rows whole."""


@dataclass
class Measured:
    """What some rows of a split come to as tokens; numbers of rows count from 1."""

    num_rows: int = 0
    """Rows that can be encoded."""
    num_examples: int = 0
    num_tokens: int = 0
    """Of the examples that are trained on, with the targets of seq2seq."""
    num_supervised_tokens: int | None = None
    """Of those; None where rows are supervised and not tokens."""
    bad: dict[str, list[int]] = field(default_factory=dict)
    """Rows that cannot be encoded, by what is wrong with them."""
    unsupervised: list[int] = field(default_factory=list)
    """Rows that have no supervised token, within the limit or at all."""
    labels: Counter[int] = field(default_factory=Counter)
    """Rows, or for tags words, by the number of their class."""
    num_labelled: int = 0
    """Rows, or for tags words, that have a label."""
    numbers: list[float] = field(default_factory=list)
    """The labels of rows whose label is a number to predict."""
    examples: list[tuple[int, Example]] = field(default_factory=list)
    """The first ones as they are trained on, each with the number of its row."""
    inputs: "_Lengths" = field(default_factory=lambda: _Lengths())
    targets: "_Lengths" = field(default_factory=lambda: _Lengths())


def measure(
    spec: TrialSpec,
    tokenizer: PreTrainedTokenizerBase,
    rows: Rows,
    numbers: Sequence[int],
    labels: Labels,
) -> Measured:
    """Encode the rows `numbers` (from 0) of `rows`.

    Raises SpecError if the tokenizer lacks what the task needs, such as a chat template.
    """
    encode = row_encoder(spec, tokenizer, rows, labels)
    encode_whole = row_encoder(_without_limits(spec), tokenizer, rows, labels)
    found = Measured()
    for number, row in zip(numbers, rows.dataset.select(numbers), strict=True):
        try:
            whole = _examples(encode_whole, row)
            long = any(_is_above(example, spec) for example in whole)
            trained = _examples(encode, row) if long or not whole else whole
        except DataError as error:
            found.bad.setdefault(str(error), []).append(number + 1)
            continue
        found.num_rows += 1
        _count(found, spec, number + 1, whole, trained)
    return found


def lengths(measured: Measured, spec: TrialSpec) -> tuple[Lengths | None, Lengths | None]:
    """Of the inputs, and of targets that are apart; None where nothing was measured."""
    inputs = measured.inputs.summary("data.max_length", spec.data.max_length)
    if not isinstance(spec.task, Seq2SeqSpec):
        return inputs, None
    limit = spec.task.max_target_length
    return inputs, measured.targets.summary("task.max_target_length", limit)


@dataclass
class _Lengths:
    whole: list[int] = field(default_factory=list)
    fates: Counter[str] = field(default_factory=Counter)
    """Rows above the limit by what becomes of them."""

    def summary(self, name: str, limit: int) -> Lengths | None:
        if not self.whole:
            return None
        ordered = sorted(self.whole)
        most = _rank(ordered, 0.95)
        return Lengths(
            limit_name=name,
            limit=limit,
            median=_rank(ordered, 0.5),
            percentile_95=most,
            longest=ordered[-1],
            num_longer=sum(length > limit for length in ordered),
            num_cut=self.fates["cut"],
            num_left_out=self.fates["left out"],
            num_continued=self.fates["continued"],
            limit_for_95_percent=math.ceil(most / _MULTIPLE) * _MULTIPLE,
        )


def _rank(ordered: Sequence[int], share: float) -> int:
    """The least value that `share` of the values do not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def _without_limits(spec: TrialSpec) -> TrialSpec:
    data = spec.data.model_copy(update={"max_length": UNLIMITED})
    task = spec.task
    if isinstance(task, Seq2SeqSpec):
        task = task.model_copy(update={"max_target_length": UNLIMITED})
    return spec.model_copy(update={"data": data, "task": task})


def _examples(encode: Encoder, row: Row) -> Sequence[Example]:
    found = encode(row)
    return [found] if isinstance(found, Mapping) else found or []


def _is_above(example: Example, spec: TrialSpec) -> bool:
    if isinstance(spec.task, Seq2SeqSpec) and len(example["labels"]) > spec.task.max_target_length:
        return True
    return len(example["input_ids"]) > spec.data.max_length


def _count(
    found: Measured,
    spec: TrialSpec,
    number: int,
    whole: Sequence[Example],
    trained: Sequence[Example],
) -> None:
    apart = isinstance(spec.task, Seq2SeqSpec)
    if not trained:
        found.unsupervised.append(number)
    if len(found.examples) < _NUM_EXAMPLES:
        found.examples += [(number, example) for example in trained[:1]]
    found.num_examples += len(trained)
    for example in trained:
        found.num_tokens += len(example["input_ids"])
        if "labels" in example:
            found.num_tokens += len(example["labels"]) if apart else 0
            supervised = sum(label != IGNORED for label in example["labels"])
            found.num_supervised_tokens = (found.num_supervised_tokens or 0) + supervised
    for example in whole:
        if isinstance(example.get("label"), float):
            found.numbers.append(example["label"])
        _add(found.inputs, "input_ids", spec.data.max_length, example, trained)
        if isinstance(spec.task, Seq2SeqSpec):
            _add(found.targets, "labels", spec.task.max_target_length, example, trained)
        held = _labels(example, spec)
        if held is not None:
            found.num_labelled += len(held) if spec.task.type == "token_classification" else 1
            found.labels.update(held)


def _add(
    into: _Lengths, column: str, limit: int, whole: Example, trained: Sequence[Example]
) -> None:
    length = len(whole[column])
    into.whole.append(length)
    if length > limit:
        fate = "left out" if not trained else "continued" if len(trained) > 1 else "cut"
        into.fates[fate] += 1


def _labels(example: Example, spec: TrialSpec) -> list[int] | None:
    """The numbers of the classes that a row, or each of its words, has."""
    label: Any = example.get("label")
    if isinstance(label, int):
        return [label]
    if isinstance(label, Iterable):
        return [number for number, is_held in enumerate(label) if is_held]
    if spec.task.type == "token_classification":
        return [tag for tag in example["labels"] if tag != IGNORED]
    return None
