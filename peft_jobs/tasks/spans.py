"""Spans in a sequence of BIO, IOBES or BILOU tags, counted as CoNLL's scorer counts them.

A span begins at B-, or at an I- that continues no span of its kind. In IOBES and BILOU its last
word has E- or L-, and a word alone S- or U-; in other tag sets these may begin the name of a kind.
A tag without a prefix (as parts of speech have) is a span of its own; O is none. Not seqeval: its
last release is of 2020.
"""

from collections.abc import Iterable, Mapping, Sequence

Span = tuple[int, int, str]
"""First word, last word + 1, kind."""
BIO = {"B": "B", "I": "I"}
_WITH_ENDS = (
    {**BIO, "E": "E", "S": "S"},
    {**BIO, "L": "E", "U": "S"},
)


def prefixes(names: Iterable[str]) -> Mapping[str, str]:
    """What the prefixes of a tag set mean: begin, inside, end or single, by IOBES' letters.

    Ends are read as such if all tags have prefixes of one scheme, and a kind that ends begins too.
    """
    tags = {name for name in names if name != "O"}
    used = {tag.partition("-")[0] if "-" in tag else "" for tag in tags}
    for scheme in _WITH_ENDS:
        ends = [tag[1:] for tag in tags if scheme.get(tag[:1]) == "E"]
        if used <= scheme.keys() and any(f"B{kind}" in tags for kind in ends):
            return scheme
    return BIO


def spans(tags: Sequence[str], meaning: Mapping[str, str] = BIO) -> set[Span]:
    """The spans of one sequence; `meaning` is what `prefixes` gives for the tag set."""
    found: set[Span] = set()
    start, kind = 0, ""
    for position, tag in enumerate([*tags, "O"]):
        prefix, _, name = tag.partition("-")
        place = meaning.get(prefix) if name else None
        if not (place in ("I", "E") and name == kind):
            if kind:
                found.add((start, position, kind))
            start, kind = position, name if place else ""
            if place is None and tag != "O":
                found.add((position, position + 1, tag))
        if place in ("E", "S"):
            found.add((start, position + 1, kind))
            kind = ""
    return found


def precision_recall_f1(correct: int, found: int, true: int) -> tuple[float, float, float]:
    """Of spans over a whole split; 0 where there is nothing to divide by."""
    precision = correct / found if found else 0.0
    recall = correct / true if true else 0.0
    total = precision + recall
    return precision, recall, 2 * precision * recall / total if total else 0.0
