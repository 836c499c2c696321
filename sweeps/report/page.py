"""The page around a report's sections: one file with its styles, scripts and plotly.js in it.

The page forbids itself to load anything, and to run any script but its own (a content security
policy with their hashes): text that got in unescaped could do nothing.
"""

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import count
from typing import Any

Figure = Mapping[str, Any]
"""What plotly.js draws: `data`, a list of traces, and `layout`; and a `caption` in plain words.
Texts in the first two are markup, so those of a person are escaped (`text`). Colours named `--best`
and so on are the page's, see `page.css`."""


@dataclass(frozen=True)
class Section:
    """A part of the page, of which `body` is HTML, and `figures` stand below it."""

    title: str
    body: str = ""
    figures: Sequence[Figure] = ()


def text(words: object) -> str:
    """Words of a person as the markup of a page or of a figure."""
    return html.escape(str(words))


def name_text(name: str) -> str:
    """A dotted name as markup that may be broken at its dots and underscores."""
    return re.sub(r"[._/]", r"\g<0><wbr>", text(name))


def paragraphs(sentences: Sequence[str]) -> str:
    """A paragraph for each sentence."""
    return "".join(f"<p>{text(sentence)}</p>" for sentence in sentences)


def render(title: str, sections: Sequence[Section]) -> str:
    """The whole page, as HTML. ValueError if a figure holds a number that is not finite."""
    scripts = [_plotly(), _file("page.js")]
    hashes = " ".join(f"'sha256-{_sha256(script)}'" for script in scripts)
    policy = (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:"
    )
    figures = [
        {part: figure[part] for part in ("data", "layout")}
        for section in sections
        for figure in section.figures
    ]
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>{text(title)}</title><style>{_file('page.css')}</style></head>",
            f"<body><main><h1>{text(title)}</h1>",
            *_sections(sections),
            "</main>",
            f'<script type="application/json" id="figures">{_json(figures)}</script>',
            *(f"<script>{script}</script>" for script in scripts),
            "</body></html>\n",
        ]
    )


def colours() -> dict[str, str]:
    """The page's colours by name, those of a light one."""
    light, _, _ = _file("page.css").partition("@media")
    return dict(re.findall(r"(--[a-z]+): (#[0-9a-f]+);", light))


def _sections(sections: Sequence[Section]) -> Iterator[str]:
    places = count()
    for section in sections:
        title = f"<h2>{text(section.title)}</h2>" if section.title else ""
        drawn = "".join(
            f"<figure><figcaption>{text(figure['caption'])}</figcaption>"
            f'<div class="figure" data-figure="{next(places)}"></div></figure>'
            for figure in section.figures
        )
        figures = f'<div class="figures">{drawn}</div>' if drawn else ""
        yield f"<section>{title}{section.body}{figures}</section>"


def _json(figures: Sequence[Figure]) -> str:
    """JSON that ends no script element."""
    return json.dumps(figures, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    script: str = get_plotlyjs()
    return script


def _file(name: str) -> str:
    return files("sweeps.report").joinpath(name).read_text(encoding="utf-8")


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
