"""Spans in a sequence of BIO tags, counted as CoNLL's scorer counts them.

A span begins at B-, or at an I- that continues no span of its kind. A tag without B- or I- (as
parts of speech have) is a span of its own; O is none. Not seqeval: its last release is of 2020.
"""

from collections.abc import Sequence

Span = tuple[int, int, str]
"""First word, last word + 1, kind."""


def spans(tags: Sequence[str]) -> set[Span]:
    """The spans of one sequence."""
    found: set[Span] = set()
    start, kind = 0, ""
    for position, tag in enumerate([*tags, "O"]):
        prefix, _, name = tag.partition("-")
        if prefix == "I" and name and name == kind:
            continue
        if kind:
            found.add((start, position, kind))
        start, kind = position, ""
        if prefix in ("B", "I") and name:
            kind = name
        elif tag != "O":
            found.add((position, position + 1, tag))
    return found


def precision_recall_f1(correct: int, found: int, true: int) -> tuple[float, float, float]:
    """Of spans over a whole split; 0 where there is nothing to divide by."""
    precision = correct / found if found else 0.0
    recall = correct / true if true else 0.0
    total = precision + recall
    return precision, recall, 2 * precision * recall / total if total else 0.0
