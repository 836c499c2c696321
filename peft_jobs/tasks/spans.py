"""Spans in a sequence of tags, counted as CoNLL's scorer (conlleval) counts them.

So does seqeval in its default mode: a span begins at a tag that begins one or stands alone, and at
a tag inside or at the end that continues no span of its kind; it is over where another begins, at
its end, and outside. In sequences that are well formed in their scheme these are the spans of
seqeval's strict mode. Not seqeval itself: its last release is of 2020.
"""

from collections.abc import Mapping, Sequence

from peft_jobs.tasks.tag_schemes import Tag

Span = tuple[int, int, str]
"""First word, last word + 1, kind."""


def spans(tags: Sequence[str], meaning: Mapping[str, Tag]) -> set[Span]:
    """The spans of one sequence; `meaning` is what `read_tags` gives for the tag set."""
    found: set[Span] = set()
    start, open_kind = 0, None
    for position, (place, kind) in enumerate([*(meaning[tag] for tag in tags), Tag("O", "")]):
        if not (place in ("I", "E") and kind == open_kind):
            if open_kind is not None:
                found.add((start, position, open_kind))
            start, open_kind = position, None if place == "O" else kind
        if place in ("E", "S"):
            found.add((start, position + 1, kind))
            open_kind = None
    return found


def precision_recall_f1(correct: int, found: int, true: int) -> tuple[float, float, float]:
    """Of spans over a whole split; 0 where there is nothing to divide by."""
    precision = correct / found if found else 0.0
    recall = correct / true if true else 0.0
    total = precision + recall
    return precision, recall, 2 * precision * recall / total if total else 0.0
