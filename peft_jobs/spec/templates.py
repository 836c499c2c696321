"""Row templates: `{column}` is replaced by the row's value, `{{` and `}}` stand for braces.

Not `str.format`: a template comes from a file, and must reach neither attributes nor indices.
"""

import re
from collections.abc import Mapping

from peft_jobs.spec.cells import text_of

_TOKEN = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


def columns(template: str) -> tuple[str, ...]:
    """The columns that `template` uses, in order of first use. Raises ValueError if malformed."""
    found: dict[str, None] = {}
    for match in _TOKEN.finditer(template):
        name = match.group(1)
        if match.group() in ("{", "}"):
            raise ValueError(
                f"template has a lone {match.group()!r} at character {match.start()}: "
                "write {column} for a column, {{ and }} for braces"
            )
        if name is None:
            continue
        if not name.strip():
            raise ValueError("template has an empty {}: name a column inside the braces")
        found[name] = None
    return tuple(found)


def render(template: str, row: Mapping[str, object]) -> str:
    """Fill `template` from `row`, each cell as the text that `text_of` gives.

    A missing column raises KeyError.
    """

    def value(match: re.Match[str]) -> str:
        if match.group() in ("{{", "}}"):
            return match.group()[0]
        return text_of(row[match.group(1)])

    return _TOKEN.sub(value, template)
