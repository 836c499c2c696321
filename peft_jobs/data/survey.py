"""Looks through a trial's data before anything is trained: rows, classes, lengths, leaks, mistakes.

Everything comes from the functions that training uses, and from a tokenizer; no weights are read.
"""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from peft_jobs.data.classes import labels_of
from peft_jobs.data.example_text import ExampleText, example_text
from peft_jobs.data.labels import Labels
from peft_jobs.data.leaks import Leak, find_leak, refusal
from peft_jobs.data.selection import (
    NUM_ROWS_NAMED,
    Selection,
    all_too_long,
    bad_rows,
    check_contexts,
    check_enough,
    select,
    subset,
    told,
)
from peft_jobs.data.sources import Rows
from peft_jobs.data.summary import ClassCount, DataSummary, SplitSummary, Targets
from peft_jobs.data.token_lengths import Measured, lengths, measure
from peft_jobs.errors import DataError, SpecError
from peft_jobs.spec import TrialSpec, file_format
from peft_jobs.tasks import TASKS

SPLITS = ("train", "validation", "test")


def survey(
    spec: TrialSpec,
    tokenizer: PreTrainedTokenizerBase | None,
    cache_dir: Path,
    max_rows: int | None = None,
) -> DataSummary:
    """The summary of the data of `spec`; mistakes are in it and not raised.

    Rows are read, and checked by what they hold, all; at most `max_rows` of a split (None: all) are
    encoded, and none without a tokenizer.
    """
    return _Survey(spec, tokenizer, cache_dir, max_rows).made()


class _Survey:
    """A summary in the making."""

    def __init__(
        self,
        spec: TrialSpec,
        tokenizer: PreTrainedTokenizerBase | None,
        cache_dir: Path,
        max_rows: int | None,
    ) -> None:
        self.spec, self.tokenizer = spec, tokenizer
        self.cache_dir, self.max_rows = cache_dir, max_rows
        self.task = TASKS[spec.task.type]
        self.labels = Labels()
        self.examples: list[ExampleText] = []
        self.splits: dict[str, SplitSummary] = {}
        self.unusable: dict[str, set[int]] = {}
        self._bad: dict[str, tuple[Rows, dict[str, list[int]]]] = {}
        """Of each source, the rows that cannot be used, by what is wrong with them."""
        self.mistakes: dict[str, None] = {}
        self.unread: dict[str, None] = {}
        self.warnings: dict[str, None] = {}

    def made(self) -> DataSummary:
        leaks: list[Leak] = []
        with _heard(self.warnings):
            selections = self._selections()
            self._find_classes(selections)
            for selection in selections.values():
                with self._collected():
                    self.splits[selection.split] = self._split(selection)
            for split in SPLITS[1:]:
                if "train" in self.splits and split in self.splits:
                    both = (selections["train"], selections[split])
                    unusable = (self.unusable["train"], self.unusable[split])
                    leak = find_leak(self.spec, *both, *unusable)
                    leaks += [] if leak is None else [leak]
        refused = [text for leak in leaks if (text := refusal(self.spec, leak)) is not None]
        self.mistakes.update(dict.fromkeys(refused))
        if self.spec.data.on_bad_row == "error":
            for rows, bad in self._bad.values():
                self.mistakes.update(dict.fromkeys(told(rows, bad).splitlines()))
        return DataSummary(
            splits=self.splits,
            leaks=leaks,
            examples=self.examples,
            warnings=list(self.warnings),
            mistakes=list(self.mistakes),
            unread=list(self.unread),
        )

    @contextlib.contextmanager
    def _collected(self) -> Iterator[None]:
        try:
            yield
        except (DataError, SpecError) as error:
            self.mistakes.update(dict.fromkeys(str(error).splitlines()))

    def _selections(self) -> dict[str, Selection]:
        found = {}
        for split in SPLITS:
            if getattr(self.spec.data, split) is None:
                continue
            with self._collected():
                try:
                    found[split] = select(self.spec.data, split, self.cache_dir)
                except SpecError as error:
                    self.unread[str(error)] = None
        return found

    def _find_classes(self, selections: dict[str, Selection]) -> None:
        spec = self.spec
        if "train" not in selections:
            if self.task.label_field(spec.task) is not None:
                self.tokenizer = None  # nothing can be encoded without the classes
            return
        with self._collected():
            check_contexts(spec, selections["train"])
        try:
            self.labels = labels_of(spec.data, spec.task, self.task, self.cache_dir)
        except DataError as error:
            self.mistakes.update(dict.fromkeys(str(error).splitlines()))
            self.tokenizer = None

    def _split(self, selection: Selection) -> SplitSummary:
        """Raises SpecError, DataError for what leaves nothing to tell of the split."""
        spec, rows = self.spec, selection.rows
        bad = self._bad_rows(rows)
        numbers = selection.numbers()
        unusable = {number for where in bad.values() for number in where}
        usable = [number for number in numbers if number + 1 not in unusable]
        measured = self._measure(selection, usable)
        for mistake, where in measured.bad.items():
            bad[mistake] = sorted({*bad.get(mistake, ()), *where})
            unusable.update(where)
        self.unusable[selection.split] = unusable
        left_out: dict[str, list[int]] = {}
        if spec.data.on_bad_row == "drop":
            chosen = {number + 1 for number in numbers}
            left_out = {text: [n for n in where if n in chosen] for text, where in bad.items()}
        sampled = self.max_rows is not None and len(usable) > self.max_rows
        encoded = not sampled and self.tokenizer is not None
        if encoded and (not bad or spec.data.on_bad_row == "drop"):
            with self._collected():
                self._check_enough(selection, measured)
                self._check_classes(selection, measured)
        inputs, targets = lengths(measured, spec)
        return SplitSummary(
            source=rows.origin,
            format=file_format(rows.origin) or "hub",
            num_source_rows=len(rows.dataset),
            num_rows=len(numbers),
            held_out=selection.share,
            left_out={text: where for text, where in left_out.items() if where},
            sampled=sampled,
            num_measured=measured.num_rows,
            num_examples=measured.num_examples,
            num_tokens=measured.num_tokens,
            num_supervised_tokens=measured.num_supervised_tokens,
            unsupervised=measured.unsupervised,
            classes=self._class_counts(measured),
            targets=Targets.of(measured.numbers),
            lengths=inputs,
            target_lengths=targets,
        )

    def _bad_rows(self, rows: Rows) -> dict[str, list[int]]:
        """Those that are known; a source that two splits share is looked through once."""
        if rows.origin not in self._bad:
            found = bad_rows(rows, self.spec.data, self.task, self.spec.task, self.labels)
            self._bad[rows.origin] = (rows, found)
        return self._bad[rows.origin][1]

    def _measure(self, selection: Selection, usable: Sequence[int]) -> Measured:
        """What the usable rows come to, or a sample of them; nothing where none can be encoded."""
        spec, chosen = self.spec, list(usable)
        if self.tokenizer is None:
            return Measured()
        if self.max_rows is not None and len(chosen) > self.max_rows:
            chosen = subset(chosen, self.max_rows, spec.data.seed, "data")
        with self._collected():
            found = measure(spec, self.tokenizer, selection.rows, chosen, self.labels)
            if selection.split == "train":
                for number, example in found.examples:
                    text = example_text(number, example, spec, self.tokenizer, self.labels.classes)
                    self.examples.append(text)
            return found
        self.tokenizer = None  # it lacks what the task needs: told once
        return Measured()

    def _check_enough(self, selection: Selection, measured: Measured) -> None:
        """What `load_data` asks of the examples of a split that was encoded whole."""
        if measured.num_rows and not measured.num_examples:
            raise all_too_long(selection, measured.num_rows, self.spec.data.max_length)
        check_enough(selection, measured.num_examples)

    def _check_classes(self, selection: Selection, measured: Measured) -> None:
        """Warn of classes that no row trains."""
        idle = [
            repr(str(name)) for n, name in enumerate(self.labels.classes) if not measured.labels[n]
        ]
        if idle and measured.num_labelled and selection.split == "train":
            names = ", ".join(idle[:NUM_ROWS_NAMED]) + ", ..." * (len(idle) > NUM_ROWS_NAMED)
            what = f"{len(idle)} classes have" if len(idle) > 1 else "one class has"
            self.warnings[f"{what} no row to train on: {names}"] = None

    def _class_counts(self, measured: Measured) -> list[ClassCount]:
        total = measured.num_labelled
        if not total:
            return []
        return [
            ClassCount(str(name), measured.labels[number], measured.labels[number] / total)
            for number, name in enumerate(self.labels.classes)
        ]


@contextlib.contextmanager
def _heard(warnings: dict[str, None]) -> Iterator[None]:
    """Take what this package would log as warnings, each once, in place of the log.

    The tokenizer is not to warn of lengths: those without a limit are asked for here.
    """

    log, listener = logging.getLogger("peft_jobs"), logging.Handler(logging.WARNING)
    listener.emit = lambda record: warnings.update({record.getMessage(): None})  # type: ignore[method-assign]
    propagated, log.propagate = log.propagate, False
    tokenizers = logging.getLogger("transformers.tokenization_utils_base")
    level = tokenizers.level
    tokenizers.setLevel(logging.ERROR)
    log.addHandler(listener)
    try:
        yield
    finally:
        tokenizers.setLevel(level)
        log.removeHandler(listener)
        log.propagate = propagated
