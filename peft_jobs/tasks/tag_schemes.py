"""What the names of a tag set mean: the place in a span of a kind, by the scheme that they follow.

Known are IOB1, IOB2 (BIO), IOE1, IOE2, IOBES, BILOU, BMES and BMEWO, and parts of them such as IO
and BIOS. The letter stands before the kind (`B-PER`) or after it (`PER-B`), in any case, apart by
any one character that is no letter or digit; or alone, where there are no kinds. Tags that are no
scheme, such as parts of speech, are a span each.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from peft_jobs.errors import DataError

Place = Literal["B", "I", "E", "S", "O"]
"""Begin, inside, end, single, outside."""
_BRACKETS = re.compile(r"\(\S+\*\)*|\*\)+")
"""An opening `(PER*`, one that closes too, or a closing `*)`, as CoNLL-2005 and 2012 have them."""
_PLACES: Mapping[str, Place] = {
    "B": "B",
    "I": "I",
    "E": "E",
    "S": "S",
    "M": "I",
    "L": "E",
    "U": "S",
    "W": "S",
}


class Tag(NamedTuple):
    """What one name of a tag set means; `kind` is empty outside, and where there are no kinds."""

    place: Place
    kind: str


class _Written(NamedTuple):
    letter: str
    kind: str


_Tags = Mapping[str, _Written]


def read_tags(names: Iterable[str]) -> dict[str, Tag]:
    """The meaning of each name of a whole tag set.

    Raises DataError, with the tags, for a set that follows a scheme in part, or two at once.
    """
    wanted = dict.fromkeys(names)
    outside = {name: Tag("O", "") for name in wanted if name.upper() == "O"}
    tags = [name for name in wanted if name not in outside]
    if any(not name.strip() for name in tags):
        raise DataError("a tag is empty")
    if brackets := [name for name in tags if _BRACKETS.fullmatch(name)]:
        raise _misfit(brackets, "are brackets, whose '*' is inside or outside by what is before it")
    ways = [
        {name: found for name in tags if (found := write(name)) is not None}
        for write in (_alone, _before, _after)
    ]
    for written in ways:
        if len(written) == len(tags) and {"B", "I"} & {tag.letter for tag in written.values()}:
            _check(written)
            return {**outside, **{n: Tag(_PLACES[w.letter], w.kind) for n, w in written.items()}}
    if (partial := _begun(ways, bool(outside))) is not None:
        others = [name for name in tags if name not in partial]
        raise _misfit(others, "have none of the letters of the scheme that the other tags follow")
    return {**outside, **{name: Tag("S", name) for name in tags}}


def is_plain(meaning: Mapping[str, Tag]) -> bool:
    """Whether the tags of `read_tags` are no scheme, so that each word counts by itself."""
    return all(tag.place in ("O", "S") for tag in meaning.values())


def _alone(name: str) -> _Written | None:
    return _Written(name.upper(), "") if name.upper() in _PLACES else None


def _before(name: str) -> _Written | None:
    separated = len(name) > 2 and not name[1].isalnum() and name[0].upper() in _PLACES
    return _Written(name[0].upper(), name[2:]) if separated else None


def _after(name: str) -> _Written | None:
    turned = _before(name[::-1])
    return None if turned is None else _Written(turned.letter, turned.kind[::-1])


def _begun(ways: Sequence[_Tags], has_outside: bool) -> _Tags | None:
    """Those of the tags that show that some of them follow a scheme; None if there are none.

    One letter alone proves nothing: `hepatitis-B` is a kind, and a part of speech may be called I.
    """
    alone, before, after = ways
    letters = {tag.letter for tag in alone.values()}
    if has_outside and {"B", "I"} <= letters:
        return alone
    for written in (before, after):
        kinds = _letters_of(written).values()
        if any(len(held) > 1 and held & {"B", "I"} for held in kinds):
            return written
    return before if any(tag.letter == "B" for tag in before.values()) else None


def _letters_of(written: _Tags) -> dict[str, set[str]]:
    found = defaultdict(set)
    for tag in written.values():
        found[tag.kind].add(tag.letter)
    return found


def _check(written: _Tags) -> None:
    """Raise DataError for what a scheme cannot have."""
    letters = {tag.letter for tag in written.values()}
    for place in ("I", "E", "S"):
        same = sorted(letter for letter in letters if _PLACES[letter] == place)
        if len(same) > 1:
            found = [name for name, tag in written.items() if tag.letter in same]
            raise _misfit(found, f"have {' and '.join(same)}, which are of two schemes")
    by_kind = _letters_of(written)
    begun = {kind for kind, held in by_kind.items() if held & {"B", "I", "M"}}
    ends = [name for name, tag in written.items() if _PLACES[tag.letter] == "E"]
    lonely = [name for name in ends if written[name].kind not in begun]
    if "B" in letters and lonely:
        raise _misfit(lonely, "end a kind that no tag begins")
    folded = defaultdict(set)
    for kind in by_kind:
        folded[kind.casefold()].add(kind)
    twice = next((kinds for kinds in folded.values() if len(kinds) > 1), None)
    if twice is not None:
        found = [name for name, tag in written.items() if tag.kind in twice]
        raise _misfit(found, "have one kind in two spellings")


def _misfit(names: list[str], what: str) -> DataError:
    named = ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5} more" * (len(names) > 5))
    return DataError(
        f"tags {named} {what}, so that spans cannot be scored: write all tags in one scheme (BIO, "
        "IOBES, BILOU, BMES, ...), or all without one; words that do not count have -100"
    )
