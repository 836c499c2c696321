"""Held-out rows whose input is trained on too: what they measure is memory.

The input is what the model is given, without the answer: the columns of a prompt or a text, the
context of a question, a conversation before the assistant's last turn. Where there is none (a
plain text) it is all that is used of the row. Inputs are equal if their text is, but for space
around it.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from peft_jobs.data.conversations import columns_of
from peft_jobs.data.selection import NUM_ROWS_NAMED, Selection, select
from peft_jobs.data.task_rows import task_rows
from peft_jobs.data.tokenized import TokenizedData
from peft_jobs.errors import DataError
from peft_jobs.spec import CausalLMSpec, QuestionAnsweringSpec, TrialSpec
from peft_jobs.spec.cells import json_text, text_of
from peft_jobs.storage.files import canonical_json, sha256, write_json
from peft_jobs.tasks import TASKS, Row
from peft_jobs.tasks.chat.conversation import conversation_of, says

FORMAT = 1
"""Goes into the names of what was found before: raise it when a leak changes meaning."""
INPUTS = ("task.prompt", "task.text", "task.text_pair", "task.tokens", "task.source")
"""Fields whose columns are the input, beside `task.context` and `task.messages`."""
MAX_IDENTICAL = 0.2
"""Of held-out rows that are trained on whole: beyond it they measure memory."""
_MAX_SHARE = 0.5
"""Of the rows that one group of a proposed `group_by` may hold: groups are kept whole."""
_MIN_SHARE = 0.1
"""Values, per row, of a proposed column that is not of the input: an id, and not a kind."""


@dataclass(frozen=True)
class Leak:
    split: str
    """The held-out split."""
    num_rows: int
    """Rows of it whose input is trained on too."""
    num_identical: int
    """Of those, rows that are trained on with the same answer."""
    share_identical: float
    """Those, of all rows of the split."""
    pairs: tuple[tuple[int, int], ...]
    """The first ones, each with a training row; numbers in their sources, from 1."""
    group_by: str | None
    """Column that would keep such rows on one side of a held-out share."""
    message: str


def find_leak(
    spec: TrialSpec,
    train: Selection,
    held_out: Selection,
    unusable: Collection[int] = (),
    unusable_held_out: Collection[int] = (),
) -> Leak | None:
    """What `held_out` shares with the rows that are trained on; None if nothing.

    Both must have the columns of the task. The unusable, numbers of rows from 1, count for nothing.
    """
    trained: dict[bytes, int] = {}
    whole: set[bytes] = set()
    for number, given, used in _keys(spec, train, unusable):
        trained.setdefault(given, number)
        whole.add(used)
    found: list[tuple[int, bytes]] = []
    num_rows = num_identical = 0
    for number, given, used in _keys(spec, held_out, unusable_held_out):
        num_rows += 1
        if given in trained:
            found.append((number, given))
            num_identical += used in whole
    if not found:
        return None
    pairs = tuple((number, trained[given]) for number, given in found[:NUM_ROWS_NAMED])
    shared = {given for _, given in found}
    column = None if held_out.share is None else _column(spec, train, held_out, shared)
    message = _message(spec, held_out, len(found), num_rows, num_identical, pairs, column)
    share = num_identical / num_rows
    return Leak(held_out.split, len(found), num_identical, share, pairs, column, message)


def refusal(spec: TrialSpec, leak: Leak) -> str | None:
    """Why a sweep must not be ranked on rows with this leak; None if it may."""
    if leak.share_identical <= MAX_IDENTICAL or spec.data.on_leak == "warn":
        return None
    return (
        f"data.{leak.split}: {leak.message}. More than {MAX_IDENTICAL:.0%} are whole rows of the "
        "training data, and a trial that remembers them would win (data.on_leak: warn ranks it "
        "all the same)"
    )


def leaks_of(spec: TrialSpec, data: TokenizedData, cache_dir: Path) -> list[Leak]:
    """What the held-out splits of `data` share with its training rows; found once for equal rows.

    Raises DataError where it is too much, see `refusal`.
    """
    sections = [section.model_dump(mode="json") for section in (spec.data, spec.task)]
    name = sha256(canonical_json([FORMAT, data.fingerprints, *sections]))
    entry = cache_dir / "leaks" / f"{name[:32]}.json"
    if entry.is_file():
        found = [Leak(**leak) for leak in json.loads(entry.read_text(encoding="utf-8"))]
    else:
        chosen = {split: select(spec.data, split, cache_dir) for split in data.numbers}
        idle = {
            split: {*range(1, len(chosen[split].rows.dataset) + 1)}.difference(numbers)
            for split, numbers in data.numbers.items()
        }
        train, unused = chosen.pop("train"), idle.pop("train")
        every = (find_leak(spec, train, chosen[s], unused, idle[s]) for s in chosen)
        found = [leak for leak in every if leak is not None]
        write_json(entry, [asdict(leak) for leak in found])
    for leak in found:
        if (reason := refusal(spec, leak)) is not None:
            raise DataError(reason)
    return found


def _keys(
    spec: TrialSpec, selection: Selection, unusable: Collection[int]
) -> Iterator[tuple[int, bytes, bytes]]:
    """Number, from 1, input, and all that is used of each row, as hashes."""
    rows, task = selection.rows, TASKS[spec.task.type]
    given, used = _columns(spec, selection)
    read = task_rows(rows, spec.data, task, spec.task)
    input_of = _cells(given or used)
    if isinstance(spec.task, CausalLMSpec) and spec.task.messages is not None:
        input_of = _before_the_answer(spec.task)
    all_of = _cells(used)
    numbers = [number for number in selection.numbers() if number + 1 not in unusable]
    chosen = rows.dataset.select_columns(used).select(numbers)
    for number, row in zip(numbers, chosen, strict=True):
        yield number + 1, _hash(input_of(read(row))), _hash(all_of(row))


def _cells(names: Sequence[str]) -> Callable[[Row], str]:
    return lambda row: json_text([text_of(row[name]).strip() for name in names])


def _before_the_answer(spec: CausalLMSpec) -> Callable[[Row], str]:
    def input_of(row: Row) -> str:
        conversation = conversation_of(row, spec)
        messages = conversation.messages
        last = max(n for n, m in enumerate(messages) if m["role"] == "assistant" and says(m))
        return json_text([messages[:last] or messages, conversation.tools])

    return input_of


def _column(
    spec: TrialSpec, train: Selection, held_out: Selection, shared: Collection[bytes]
) -> str | None:
    """The column, with the most values of those that rows with a shared input have in common.

    A column of the input, or one that the task does not use and that tells many rows apart.
    """
    dataset = train.rows.dataset
    given, used = _columns(spec, train)
    rows = [
        (number - 1, key)
        for selection in (train, held_out)
        for number, key, _ in _keys(spec, selection, ())
        if key in shared
    ]
    best, most = None, 1
    for name in (name for name in dataset.column_names if name in given or name not in used):
        cells = list(map(_text, dataset[name]))
        counts = Counter(cells)
        least = most if name in given else max(most, _MIN_SHARE * len(cells))
        if len(counts) <= least or max(counts.values()) > _MAX_SHARE * len(cells):
            continue
        seen: dict[bytes, str] = {}
        if all(seen.setdefault(key, cells[number]) == cells[number] for number, key in rows):
            best, most = name, len(counts)
    return best


def _columns(spec: TrialSpec, selection: Selection) -> tuple[list[str], list[str]]:
    """The columns of the input, and all that the task uses."""
    names = selection.rows.dataset.column_names
    columns = columns_of(spec.data, TASKS[spec.task.type], spec.task, names)
    inputs = ("task.context",) if isinstance(spec.task, QuestionAnsweringSpec) else INPUTS
    used = sorted({name for held in columns.values() for name in held})
    return sorted({name for field in inputs for name in columns.get(field, ())}), used


def _text(cell: object) -> str:
    return repr(cell) if isinstance(cell, bytes) else text_of(cell)


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _message(
    spec: TrialSpec,
    held_out: Selection,
    num_rows: int,
    num_held_out: int,
    num_identical: int,
    pairs: Sequence[tuple[int, int]],
    column: str | None,
) -> str:
    what = "a context" if isinstance(spec.task, QuestionAnsweringSpec) else "an input"
    rows = "rows has" if num_rows == 1 else "rows have"
    same = ""
    if num_identical:
        same = f", {num_identical:,} of them with the same answer"
    named = ", ".join(f"{held:,} (train {trained:,})" for held, trained in pairs)
    more = ", ..." if num_rows > len(pairs) else ""
    if column is not None:
        remedy = f"write data.group_by: {column}"
    elif held_out.share is not None:
        remedy = "take the repeated rows out of the file"
    else:
        remedy = "take them out of one of the two sources"
    return (
        f"{num_rows:,} of {num_held_out:,} {held_out.split} {rows} {what} that is trained on "
        f"too{same}, such as {named}{more}: {remedy}"
    )
