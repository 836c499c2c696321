"""Tokenised once, mapped by all: examples as Arrow files that every trial of a sweep shares.

A cache entry's name is a fingerprint of everything that decides its content (rows, templates,
tokenizer, max_length, classes). It is written aside and renamed, so it is whole or not there, and
of two processes that write the same entry at once either may win.
"""

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, load_from_disk
from transformers import PreTrainedTokenizerBase

from peft_jobs.data.classes import labels_of, row_encoder
from peft_jobs.data.fingerprints import template_fingerprint, tokenizer_fingerprint
from peft_jobs.data.labels import Labels
from peft_jobs.data.selection import (
    Selection,
    all_too_long,
    bad_rows,
    check_contexts,
    check_enough,
    select,
    told,
)
from peft_jobs.errors import DataError, SpecError
from peft_jobs.spec import TrialSpec
from peft_jobs.storage.files import canonical_json, sha256, write_once
from peft_jobs.tasks import TASKS, Encoder, Example

log = logging.getLogger(__name__)

FORMAT = 8
"""Goes into every name: raise it when the content of an entry changes meaning."""
NUMBERS_FILE = "numbers.npy"


@dataclass(frozen=True)
class TokenizedData:
    """Memory-mapped examples by split, in the columns of the task's `features`."""

    train: Dataset
    validation: Dataset
    test: Dataset | None
    labels: Labels
    """The classes, and how rows tell them."""
    dropped: dict[str, int]
    """Rows by split that had no supervised token left within max_length."""
    fingerprints: dict[str, str]
    """`data` (the validation rows, on which trials are compared), `train_data`, `template`,
    `tokenizer`."""
    numbers: dict[str, Sequence[int]] = field(default_factory=dict)
    """By split, for each example the number of its row in the source, from 1."""

    @property
    def classes(self) -> tuple[int | str, ...]:
        """In the order of the head; () for a task without classes."""
        return self.labels.classes

    @property
    def splits(self) -> list[Dataset]:
        return [split for split in (self.train, self.validation, self.test) if split is not None]

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest example of all splits."""
        return self._most("input_ids")

    @cached_property
    def longest_target(self) -> int:
        """Tokens of the longest target, where it is apart from the input."""
        return self._most("labels")

    def _most(self, column: str) -> int:
        return max(max(map(len, split[column])) for split in self.splits)


def load_data(
    spec: TrialSpec,
    tokenizer: PreTrainedTokenizerBase,
    cache_dir: Path,
    splits: Sequence[str] = ("train", "validation"),
    labels: Labels | None = None,
) -> TokenizedData:
    """The examples of `splits` (train and validation always), tokenised now or found in the cache.

    `labels` are those of the head; None takes the classes as the training rows show them.
    Rows without a supervised token within max_length are left out, with a warning. Raises
    SpecError and DataError, naming file, rows and column, for what cannot be trained on.
    """
    task = TASKS[spec.task.type]
    if labels is None:
        labels = labels_of(spec.data, spec.task, task, cache_dir)
    wanted = dict.fromkeys(["train", "validation", *splits])
    selections = {split: select(spec.data, split, cache_dir) for split in wanted}
    check_contexts(spec, selections["train"])
    template, tokens = template_fingerprint(spec, tokenizer), tokenizer_fingerprint(tokenizer)
    content = [FORMAT, template, tokens, asdict(labels)]
    found: dict[str, Dataset] = {}
    dropped: dict[str, int] = {}
    numbers: dict[str, Sequence[int]] = {}
    for split, selection in selections.items():
        name = sha256(canonical_json([*content, selection.fingerprint]))
        entry = cache_dir / "tokens" / name[:32]
        if not entry.is_dir():
            write_once(entry, partial(_tokenise, spec, tokenizer, selection, labels))
        found[split], dropped[split] = _load(entry, selection, spec.data.max_length)
        check_enough(selection, len(found[split]))
        numbers[split] = np.load(entry / NUMBERS_FILE, mmap_mode="r")
    return TokenizedData(
        found["train"],
        found["validation"],
        found.get("test"),
        labels,
        dropped,
        {
            "data": selections["validation"].fingerprint,
            "train_data": selections["train"].fingerprint,
            "template": template,
            "tokenizer": tokens,
        },
        numbers,
    )


def _tokenise(
    spec: TrialSpec,
    tokenizer: PreTrainedTokenizerBase,
    selection: Selection,
    labels: Labels,
    folder: Path,
) -> None:
    """Write the examples of `selection` into `folder`, with what was dropped."""
    task, rows = TASKS[spec.task.type], selection.rows
    bad = bad_rows(rows, spec.data, task, spec.task, labels)

    def refuse_bad() -> None:
        if bad and spec.data.on_bad_row == "error":
            raise DataError(told(rows, bad))

    refuse_bad()
    encode = row_encoder(spec, tokenizer, rows, labels)
    chosen = selection.numbers()
    unusable = {number - 1 for numbers in bad.values() for number in numbers}
    numbers = [number for number in chosen if number not in unusable]
    scratch = folder / "scratch"
    scratch.mkdir()
    dropped: list[int] = []
    kept: list[int] = []
    features = task.features(tokenizer, spec.task)
    batch = partial(_encode_batch, encode, list(features), numbers, kept, dropped, bad)

    def encode_batch(rows_by_column: dict[str, list[Any]], indices: list[int]) -> dict[str, Any]:
        found = batch(rows_by_column, indices)
        refuse_bad()
        return found

    examples = rows.dataset.select(numbers).map(
        encode_batch,
        batched=True,
        with_indices=True,
        remove_columns=rows.dataset.column_names,
        features=features,
        load_from_cache_file=False,
        cache_file_name=str(scratch / "examples.arrow"),
        new_fingerprint=folder.name.strip("."),
    )
    if len(examples) == 0:
        if bad and not dropped:
            raise DataError(told(rows, bad))
        raise all_too_long(selection, len(numbers), spec.data.max_length)
    examples.save_to_disk(str(folder))
    np.save(folder / NUMBERS_FILE, np.array(kept, np.int64))
    shutil.rmtree(scratch)
    chosen_rows = {number + 1 for number in chosen}
    left_out = {text: [n for n in where if n in chosen_rows] for text, where in bad.items()}
    note = {
        "dropped": len(dropped),
        "rows": len(chosen),
        "bad": {text: where for text, where in left_out.items() if where},
    }
    (folder / "dropped.json").write_text(json.dumps(note), encoding="utf-8")


def _encode_batch(
    encode: Encoder,
    columns: list[str],
    numbers: list[int],
    kept: list[int],
    dropped: list[int],
    bad: dict[str, list[int]],
    batch: dict[str, list[Any]],
    indices: list[int],
) -> dict[str, list[Any]]:
    """Examples of some rows, by column. The row's number is added to `kept` for each example, to
    `dropped` if it gives none, to `bad` if it cannot be encoded."""
    encoded: list[Example] = []
    for position, index in enumerate(indices):
        row = {name: values[position] for name, values in batch.items()}
        try:
            found = encode(row)
        except DataError as error:
            bad.setdefault(str(error), []).append(numbers[index] + 1)
            continue
        examples = [found] if isinstance(found, dict) else found or []
        if not examples:
            dropped.append(numbers[index])
        encoded += examples
        kept += [numbers[index] + 1] * len(examples)
    return {name: [example[name] for example in encoded] for name in columns}


def _load(entry: Path, selection: Selection, max_length: int) -> tuple[Dataset, int]:
    dataset = load_from_disk(str(entry))
    if not isinstance(dataset, Dataset):
        raise SpecError(f"{entry} is no tokenised split; remove it")
    note = json.loads((entry / "dropped.json").read_text(encoding="utf-8"))
    dropped = int(note["dropped"])
    if dropped:
        log.warning(
            "%s: %d of %d %s rows have no supervised token within data.max_length = %d "
            "and are left out",
            selection.rows.origin,
            dropped,
            note["rows"],
            selection.split,
            max_length,
        )
    if bad := note["bad"]:
        log.warning(
            "%d of %d %s rows are left out (data.on_bad_row: drop):\n%s",
            sum(map(len, bad.values())),
            note["rows"],
            selection.split,
            told(selection.rows, bad),
        )
    return dataset, dropped
