"""What is said when a space is wrong: one exception, one sentence for a misspelled name."""

from collections.abc import Collection
from difflib import get_close_matches

_MOST_NAMES_LISTED = 12


class SpaceError(ValueError):
    """A search space, or a point of it, is not what it must be."""


def unknown(kind: str, name: str, known: Collection[str]) -> str:
    """The sentence for a `name` that is not among `known`, with the nearest ones; all, if few."""
    text = f"unknown {kind} {name!r}"
    if close := get_close_matches(name, known, n=2):
        text += "; did you mean " + " or ".join(repr(candidate) for candidate in close) + "?"
    if len(known) <= _MOST_NAMES_LISTED:
        text += f"{'' if close else ';'} known: {', '.join(known) or 'none'}"
    return text
