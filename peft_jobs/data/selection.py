"""Which rows a trial trains on and is measured on: checked, held out, subset.

Rows are ordered for the hold-out and the subsets by a hash of (seed, row), not by a generator: the
order depends on no library version, and a smaller subset of one seed lies inside a larger one.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Json, LargeList, List, Value

from peft_jobs.data.conversations import columns_of
from peft_jobs.data.labels import Labels
from peft_jobs.data.sources import Rows, read, training_rows
from peft_jobs.data.task_rows import task_rows
from peft_jobs.errors import DataError, SpecError
from peft_jobs.spec import DataSpec, QuestionAnsweringSpec, Source, TaskSpec, TrialSpec
from peft_jobs.spec.cells import json_text
from peft_jobs.spec.mistakes import suggest
from peft_jobs.storage.files import canonical_json, sha256
from peft_jobs.tasks import Task

MIN_EXAMPLES = 2
"""One row alone is memorised, or decides alone which trial is the best."""
NUM_ROWS_NAMED = 5
"""A message names at most this many rows of one mistake."""


@dataclass(frozen=True)
class Selection:
    """The rows of one split that a trial sees: a source, a side of the hold-out, a subset."""

    rows: Rows
    split: str
    seed: int
    share: float | None
    """Of the source that is held out; None where the split has a source of its own."""
    size: float | int | None
    """Of the subset: a share below 1, or a count."""
    group_by: str | None = None
    """Column of which no value lies on both sides of the hold-out."""

    @property
    def fingerprint(self) -> str:
        """Of content and choice; equal selections of equal files are equal."""
        side = None if self.share is None else [self.split, self.share]
        if side is not None and self.group_by is not None:
            side.append(self.group_by)
        seed = None if side is None and self.size is None else self.seed
        return sha256(canonical_json([self.rows.fingerprint, side, self.size, seed]))

    def numbers(self) -> list[int]:
        """Row numbers in the source, ascending. Raises SpecError, DataError where too few."""
        numbers = list(range(len(self.rows.dataset)))
        if self.share is not None:
            train, held = hold_out(len(numbers), self.share, self.seed, self._groups())
            numbers = train if self.split == "train" else held
        field = "data.subset" if self.split == "train" else "data.validation_subset"
        return subset(numbers, self.size, self.seed, field)

    def _groups(self) -> list[int] | None:
        """The number of each row's group, in the order in which they come."""
        if self.group_by is None:
            return None
        check_columns(self.rows, {"data.group_by": (self.group_by,)})
        seen: dict[Any, int] = {}
        values = map(_group, self.rows.dataset[self.group_by])
        return [seen.setdefault(value, len(seen)) for value in values]


def select(data: DataSpec, split: str, cache_dir: Path) -> Selection:
    """What the trial sees of `split` (train, validation, test).

    Raises SpecError where the spec gives no such split, and what `read` raises.
    """
    share = None if isinstance(data.validation, Source) or split == "test" else data.validation
    sources = {"train": data.train, "validation": data.validation, "test": data.test}
    source = data.train if share is not None else sources[split]
    if not isinstance(source, Source):
        raise SpecError(f"data.{split}: no such split is given")
    size = {"train": data.subset, "validation": data.validation_subset, "test": None}[split]
    is_trained_on = source is data.train
    rows = training_rows(data, cache_dir) if is_trained_on else read(source, split, cache_dir)
    return Selection(rows, split, data.seed, share, size, None if share is None else data.group_by)


def hold_out(
    num_rows: int, share: float, seed: int, groups: Sequence[int] | None = None
) -> tuple[list[int], list[int]]:
    """Row numbers to train on and to hold out, both ascending, together all of them.

    At least one row lands on each side. `groups`, the number of each row's group, keeps the rows of
    a group on one side; groups are held out until the share is reached. Raises DataError below two
    rows, or two groups.
    """
    if num_rows < 2:
        raise DataError(f"data.validation: {share} of {num_rows} row leaves nothing to train on")
    if groups is None:
        groups = range(num_rows)
    sizes = Counter(groups)
    if len(sizes) < 2:
        raise DataError(
            "data.group_by: all rows are of one group, which leaves nothing to hold out"
        )
    wanted = min(max(1, round(share * num_rows)), num_rows - 1)
    held: set[int] = set()
    num_held = 0
    for group in _seeded_order(sizes, "held-out", seed):
        if num_held >= wanted or len(held) == len(sizes) - 1:
            break
        held.add(group)
        num_held += sizes[group]
    sides: tuple[list[int], list[int]] = ([], [])
    for row, group in enumerate(groups):
        sides[group in held].append(row)
    return sides


def subset(rows: list[int], size: float | int | None, seed: int, field: str) -> list[int]:
    """`size` (a share below 1, or a count) of `rows`, ascending; None takes all.

    Smaller subsets of one seed lie inside larger ones. Raises SpecError, naming `field`, if there
    are not that many rows.
    """
    if size is None:
        return rows
    count = max(1, round(size * len(rows))) if size < 1 else int(size)
    if count > len(rows):
        raise SpecError(f"{field} must be <= {len(rows)}, the rows there are, got {count}")
    return sorted(_seeded_order(rows, "subset", seed)[:count])


def bad_rows(
    rows: Rows, data: DataSpec, task: Task[Any], task_spec: TaskSpec, labels: Labels
) -> dict[str, list[int]]:
    """Numbers, from 1, of the rows that cannot be used, by what is wrong with them.

    Raises DataError if a column is missing.
    """
    columns = columns_of(data, task, task_spec, rows.dataset.column_names)
    check_columns(rows, columns)
    names = {name for used in columns.values() for name in used}
    given = task_rows(rows, data, task, task_spec)

    def mistake(row: Mapping[str, Any]) -> str | None:
        try:
            read = given(row)
        except DataError as error:
            return str(error)
        return task.mistake(read, task_spec) or labels.mistake(read)

    return by_mistake(map(mistake, rows.dataset.select_columns(sorted(names))))


def by_mistake(mistakes: Iterable[str | None]) -> dict[str, list[int]]:
    """The numbers of rows by their mistake; there is one entry for each row, in their order."""
    found: dict[str, list[int]] = {}
    for number, mistake in enumerate(mistakes, start=1):
        if mistake is not None:
            found.setdefault(mistake, []).append(number)
    return found


def told(rows: Rows, bad: Mapping[str, Sequence[int]]) -> str:
    """A line for each mistake, with the rows that have it."""
    return "\n".join(_rows_line(rows, text, where) for text, where in bad.items())


def check_enough(selection: Selection, num_examples: int) -> None:
    """Raise DataError if a split has too few examples to train on or to compare trials by."""
    if num_examples < MIN_EXAMPLES and selection.split != "test":
        raise DataError(
            f"data.{selection.split} must have at least {MIN_EXAMPLES} examples, got "
            f"{num_examples} of {selection.rows.origin}"
        )


def all_too_long(selection: Selection, num_rows: int, max_length: int) -> DataError:
    """The error of a split in which no row has a supervised token."""
    return DataError(
        f"{selection.rows.origin}: none of {num_rows} rows has a supervised token within "
        f"data.max_length = {max_length}; raise it or shorten the prompt"
    )


def check_contexts(spec: TrialSpec, train: Selection) -> None:
    """Raise SpecError if a held-out share has questions on contexts that are trained on."""
    if not isinstance(spec.task, QuestionAnsweringSpec) or train.share is None:
        return
    names = train.rows.dataset.column_names
    if spec.data.group_by is not None or spec.task.context not in names:
        return
    contexts = train.rows.dataset[spec.task.context]
    if len(set(contexts)) < len(contexts):
        raise SpecError(
            "data.group_by: several questions share a context, which would be trained on and "
            f"validated on; write group_by: {spec.task.context}"
        )


def check_columns(rows: Rows, columns: Mapping[str, tuple[str, ...]]) -> None:
    """Raise DataError if a field of the spec (key) uses a column that the rows do not have, or
    one whose values (bytes, images, ...) have no text."""
    known = rows.dataset.column_names
    missing = [
        f"{field} uses column {name!r}, which {rows.origin} does not have{suggest(name, known)}"
        for field, names in columns.items()
        for name in names
        if name not in known
    ]
    found = missing or [
        f"{field} uses column {name!r} of {rows.origin}, which holds {kind} and no text"
        for field, names in columns.items()
        for name in names
        if (kind := _no_text(rows.dataset.features[name]))
    ]
    if found:
        raise DataError("\n".join(found))


def _no_text(feature: Any) -> str | None:
    """What a column holds that has no text, such as images; None if it has one."""
    if isinstance(feature, Value):
        return "bytes" if "binary" in feature.dtype else None
    if isinstance(feature, dict):
        return next(filter(None, map(_no_text, feature.values())), None)
    if isinstance(feature, List | LargeList):
        return _no_text(feature.feature)
    return None if isinstance(feature, ClassLabel | Json) else type(feature).__name__


def _group(cell: Any) -> Any:
    """What equal cells have in common; a list or a mapping has its JSON."""
    return json_text(cell) if isinstance(cell, list | dict) else cell


def _seeded_order(rows: Iterable[int], what: str, seed: int) -> list[int]:
    return sorted(rows, key=lambda row: sha256(f"{what}/{seed}/{row}"))


def _rows_line(rows: Rows, mistake: str, numbers: Sequence[int]) -> str:
    named, rest = ", ".join(map(str, numbers[:NUM_ROWS_NAMED])), numbers[NUM_ROWS_NAMED:]
    more = f" and {len(rest)} more" if rest else ""
    return f"{rows.origin}, row{'s' if len(numbers) > 1 else ''} {named}{more}: {mistake}"
