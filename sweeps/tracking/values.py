"""Params, tags and metrics in the shape and size that MLflow takes.

MLflow silently cuts params at 6000 and tags at 8000 characters (`mlflow/utils/validation.py`),
refuses all params of a request for one name that it does not take, and stores an infinite metric as
1.8e308. Here the cut is visible, the full value and the true name go into an artifact, and a metric
that is no finite number becomes a tag.
"""

import itertools
import json
import math
import posixpath
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

MAX_PARAM_CHARACTERS = 6000
MAX_TAG_CHARACTERS = 8000
MAX_NAME_CHARACTERS = 240  # of 250, with room for `changed.`


@dataclass
class Texts:
    """Strings that fit, by name, and the full ones that do not, by artifact file."""

    values: dict[str, str] = field(default_factory=dict)
    artifacts: dict[str, str] = field(default_factory=dict)


def fit_params(params: Mapping[str, object]) -> Texts:
    """Params as JSON spells them, bare strings without quotes (`true`, `0.0002`, `["q_proj"]`).

    When one is too long, it ends with where all of them stand in full: `config/params.json`. They
    stand there under their own names, too, when MLflow does not take one of those (a pattern in
    `adapter.rank_pattern`, say).
    """
    plain = {
        name: value if isinstance(value, str) else json.dumps(value, default=str)
        for name, value in params.items()
    }
    texts, names = Texts(), _fit_names(plain)
    for name, value in plain.items():
        texts.values[names[name]] = _cut(value, MAX_PARAM_CHARACTERS, "config/params.json")
    if texts.values != plain:
        full = json.dumps(dict(params), indent=2, default=str)
        texts.artifacts["config/params.json"] = full
    return texts


def fit_tags(tags: Mapping[str, str]) -> Texts:
    """Tags; one that is too long ends, at a line's end, with the artifact that has all of it."""
    texts = Texts()
    for name, value in tags.items():
        file = f"config/tags/{name.replace('/', '.')}.txt"
        texts.values[name] = _cut(value, MAX_TAG_CHARACTERS, file)
        if texts.values[name] != value:
            texts.artifacts[file] = value
    return texts


def split_metrics(
    metrics: Mapping[str, float], step: int | None
) -> tuple[dict[str, float], dict[str, str]]:
    """The finite metrics, and a tag `not_finite.<name>` for each of the others."""
    finite, tags = {}, {}
    for name, number in metrics.items():
        value = float(number)
        if math.isfinite(value):
            finite[name] = value
        else:
            tags[f"not_finite.{name}"] = f"{value}" if step is None else f"{value} at step {step}"
    return finite, tags


def _fit_names(names: Collection[str]) -> dict[str, str]:
    """A name that MLflow takes for each, the same if it can be, and all of them distinct."""
    fit = {name: name for name in names if _is_fit(name)}
    taken = set(fit)
    for name in names:
        if name not in fit:
            # A leading dot or a slash may make the name that of another file.
            plain = re.sub(r"^\.|[^\w.: -]", "_", name)
            ends = itertools.chain([""], (f"_{n}" for n in itertools.count(2)))
            tries = (plain[: MAX_NAME_CHARACTERS - len(end)] + end for end in ends)
            fit[name] = next(other for other in tries if other not in taken)
            taken.add(fit[name])
    return fit


def _is_fit(name: str) -> bool:
    is_plain = re.fullmatch(r"[/\w.: -]+", name) and posixpath.normpath(name) == name
    return bool(is_plain) and name[0] not in "./" and len(name) <= MAX_NAME_CHARACTERS


def _cut(text: str, limit: int, file: str) -> str:
    if len(text) <= limit:
        return text
    end = f"\n\n… cut at {limit} characters; in full: artifact {file}"
    kept = text[: limit - len(end)]
    last_line = kept.rfind("\n")
    # A markdown table is cut between rows; a value without line breaks is cut where it must be.
    return (kept[:last_line] if last_line > limit // 2 else kept) + end
