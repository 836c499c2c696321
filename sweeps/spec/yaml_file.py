"""The text of a sweep file: safe YAML without bombs or repeated keys, and `key=value` overrides."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from peft_jobs import SpecError

MAX_FILE_BYTES = 100_000
"""Twenty times a long sweep file; as much as is read in a second."""
MAX_DEPTH = 50
MAX_DIGITS = 100
# PyYAML's constructors let their own errors through: a date of month 13, `!!bool maybe`.
_UNREADABLE = (yaml.YAMLError, ValueError, KeyError, AttributeError, RecursionError)
_SURROGATE = re.compile("[\ud800-\udfff]")


class SweepFileError(SpecError):
    """A sweep file that cannot be run; `problems` holds one line per mistake."""

    def __init__(self, source: str, problems: Sequence[str]) -> None:
        super().__init__(source, list(problems))
        self.source, self.problems = source, list(problems)

    def __str__(self) -> str:
        count = f"{len(self.problems)} mistake{'s' if len(self.problems) > 1 else ''}"
        return "\n".join([f"{self.source}: {count}", *(f"  {line}" for line in self.problems)])


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in the file; SweepFileError if there is none to be read."""
    if not path.is_file():
        raise SweepFileError(str(path), ["no such file; `peft-sweep init` writes one"])
    if path.stat().st_size > MAX_FILE_BYTES:
        raise SweepFileError(str(path), [f"must be at most {MAX_FILE_BYTES} bytes"])
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except _UNREADABLE as error:
        raise SweepFileError(
            str(path), [f"is no YAML that can be read: {_one_line(error)}"]
        ) from None
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        raise SweepFileError(str(path), ["must be a mapping of names to sections"])
    return tree


class _Loader(yaml.SafeLoader):
    """Safe YAML without aliases (an alias bomb grows without bound), repeated keys, deep nesting,
    numbers that Python would not print, and text that no file or database takes."""

    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"aliases (*name) are not allowed, line {mark.line + 1}")
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise yaml.YAMLError(f"at most {MAX_DEPTH} levels of nesting, line {mark.line + 1}")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        value, line = super().construct_object(node, deep), node.start_mark.line + 1
        if isinstance(value, int) and abs(value) >= 10**MAX_DIGITS:
            raise yaml.YAMLError(f"numbers have at most {MAX_DIGITS} digits, line {line}")
        if isinstance(value, str) and ("\0" in value or _SURROGATE.search(value)):
            raise yaml.YAMLError(f"text must not hold null characters or surrogates, line {line}")
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int | float | bool | None):
                raise yaml.YAMLError(f"keys must be plain names, line {node.start_mark.line + 1}")
            if key in seen:
                line = key_node.start_mark.line + 1
                raise yaml.YAMLError(f"the key {key!r} is given twice, line {line}")
            seen.add(key)
        return super().construct_mapping(node, deep)


_SHORTHANDS = {"model": "name_or_path", "from": "name_or_path", "quantization": "scheme"}
"""What the text stands for that may be written in a section's place, beside `type`."""


def _one_line(error: Exception) -> str:
    """What PyYAML found, and where, without its drawing of the place."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return " ".join(str(error).split())
    told = ", ".join(filter(None, (error.context, error.problem)))
    return f"{told}, line {error.problem_mark.line + 1}"


def override(tree: dict[str, Any], text: str) -> None:
    """Set one `key=value` in the tree of a sweep file; SweepFileError if it cannot be."""
    name, equals, written = text.partition("=")
    if not equals or not name:
        raise SweepFileError(text, ["an override must look like budget.n_trials=64"])
    try:
        value = yaml.load(written, Loader=_Loader)
    except _UNREADABLE as error:
        raise SweepFileError(text, [f"is no YAML value: {_one_line(error)}"]) from None
    *parents, leaf = name.split(".")
    if parents[:1] == ["space"]:  # names of parameters have dots: space.parameters.adapter.r=...
        parents, leaf = parents[:2], ".".join([*parents[2:], leaf])
    node: Any = tree
    for parent in parents:
        inner = node.get(parent)
        if isinstance(inner, str):  # a shorthand, e.g. `quantization: nf4`
            key = _SHORTHANDS.get(parent, "type")
            inner = {} if parent == "tracking" else {key: inner}
        node[parent] = inner = {} if inner is None else inner
        if not isinstance(inner, dict):
            raise SweepFileError(text, [f"{parent} holds a value, not a section"])
        node = inner
    node[leaf] = value
