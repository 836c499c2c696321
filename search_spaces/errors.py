"""What is said when a space is wrong: one exception, one sentence for a misspelled name."""

from collections.abc import Iterable
from difflib import get_close_matches

MAX_NAMES_LISTED = 50


class SpaceError(ValueError):
    """A search space, or a point of it, is not what it must be."""


def unknown(kind: str, name: str, known: Iterable[str], meant: str | None = None) -> str:
    """The sentence for a `name` that is not among `known`, with `meant` or the nearest two of them,
    and all.

    More than MAX_NAMES_LISTED are not listed. The sentence ends in the words of
    `peft_jobs.spec.mistakes.suggest`, which may not be imported here.
    """
    names = sorted(set(known))
    near = [meant] if meant is not None else get_close_matches(name, names, n=2)
    close = " or ".join(map(repr, near))
    hint = f" did you mean {close}?" if close else ""
    if len(names) <= MAX_NAMES_LISTED:
        hint += f" known: {', '.join(names) or 'none'}"
    return f"unknown {kind} {name!r}{hint and f';{hint}'}"
