"""Writes `sweep-file.md`, the reference of the sweep file, from the schema of the sweep file.

`python infra/docs/make_sweep_file.py` writes the page; a test makes it again and compares. What the
fields mean is said in the code, in the docstring beneath each field.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from search_spaces.expressions import FUNCTIONS
from sweeps.cli.commands.schema import sweep_file_schema

Node = Mapping[str, Any]
PAGE = Path(__file__).with_name("sweep-file.md")
INTRODUCTION = """\
# The sweep file

`infra/docs/make_sweep_file.py` makes this page from the schema that `peft-sweep schema` prints. An
editor that reads JSON schemas completes and checks a sweep file while you type.

* A sweep file is YAML without tags, aliases and repeated keys. `peft-sweep init` writes one with
  comments for each task; [`sweeps/examples/`](../../sweeps/examples) has more.
* A dotted name is a path in the file: `adapter.r` is the key `r` of the section `adapter`. The
  space, the database, MLflow, the leaderboard and the command line use the same names.
* The command line sets any key, after the file: `peft-sweep run sweep.yaml budget.n_trials=64`. The
  value is read as YAML.
* Relative paths start at the current folder.
* Fields of peft, transformers and bitsandbytes keep their names there, and their meaning. Where
  this page says nothing of such a field, their own documentation holds.
* `default` is what holds where the key is left out; **required** keys have none.
"""
MEANINGS = {
    "model": "The base that all adapters of the sweep are trained on.",
    "quantization": "How the base is quantized; `none` by default.",
    "adapter": "The method and its fields; plain LoRA by default. The space varies it.",
    "task": "What is learned, and which columns of a row hold it.",
    "data": "The rows that are trained on, and those that are measured.",
    "training": "Optimizer, schedule, batch, precision.",
    "evaluation": "What is measured beside the loss, and in what batches.",
    "name": "The sweep's name; by default that of the file without its suffix.",
    "space": "What is searched.",
    "objective": "What trials are ranked by.",
    "sampler": "Who chooses the points.",
    "pruner": "Who stops weak trials.",
    "budget": "How many trials, and how long each.",
    "resources": "Where trials run, and what each holds.",
    "checkpoints": "What running and ended trials leave on disk.",
    "tracking": "Where the sweep is mirrored in MLflow.",
}
"""Of top-level keys without a docstring."""
HEADINGS = {
    "Float": "Kind of parameter: float",
    "Int": "Kind of parameter: int",
    "Categorical": "Kind of parameter: categorical",
    "Fixed": "Kind of parameter: fixed",
    "Derived": "Kind of parameter: derived",
    "FunctionSpace": "space: a Python function",
    "AdapterSource": "adapter.from: a saved adapter",
    "Source": "A source of rows",
}
"""Headings of definitions that are no section of their own."""
SPACE = f"""\
Parameters go by dotted name. A parameter with `choices` is categorical, one with `low` and `high`
an int or a float by its numbers, one with `value` fixed and one with `expression` derived; `type`
may be left out then. A plain value is fixed; a text that reads another parameter is an expression:
`adapter.lora_alpha: 2 * adapter.r`.

Expressions have numbers, texts, lists, dotted names, arithmetic, comparisons, `and`, `or`, `not`,
`A if CONDITION else B`, and the functions {", ".join(f"`{name}`" for name in FUNCTIONS)}.
A name that the space does not sample is read from the rest of the file.

A preset is a space that comes with the package, in
[`search_spaces/presets/`](../../search_spaces/presets); comments in each say where its ranges come
from. What the file declares replaces the preset's parameters, or joins them.
"""
FUNCTION = """\
```text
def draw(trial):  # offers suggest_float, suggest_int, suggest_categorical, as Optuna's trials do
    r = trial.suggest_categorical("adapter.r", [4, 8, 16])
    return {"adapter.r": r, "adapter.lora_alpha": 2 * r}
```
"""
LARGE = 10**7
"""Bounds from here on only keep slips of the keyboard out; the page leaves them out."""
SHARED_BY = 10
"""A field that so many methods have in common is described once."""


def page() -> str:
    """The whole page as Markdown; equal schemas give equal text."""
    schema = sweep_file_schema()
    definitions: dict[str, Node] = schema["$defs"]
    names = _headings(schema)
    lines = [INTRODUCTION, "## Top level\n", *_top_level(schema, names)]
    for key, node in schema["properties"].items():
        lines += _section(key, node, definitions, names)
    text = "\n".join(lines)
    return text.rstrip("\n") + "\n"


def _top_level(schema: Node, names: Mapping[str, str]) -> Iterator[str]:
    fields = {}
    for key, field in schema["properties"].items():
        meaning = {"description": MEANINGS[key]} if key in MEANINGS else {}
        fields[key] = {**meaning, **field}
        if "discriminator" in field:  # a union of sections, described under one heading
            fields[key] = {**meaning, "$ref": key}
    yield from _rows(fields, {**names, "adapter": "adapter", "task": "task"}, schema["required"])


def _section(
    key: str, node: Node, definitions: Mapping[str, Node], names: Mapping[str, str]
) -> Iterator[str]:
    """The lines of one top-level key; none for a key without keys of its own."""
    if key == "adapter":
        yield from _adapters(node, definitions, names)
        return
    members = list(_references(node))
    if key == "task":
        yield "\n## task\n\nA union: `type` says which of these it is."
        for member in members:
            yield f"\n### {names[member]}\n"
            yield from _described(definitions[member], names)
        return
    for member in members:
        yield f"\n## {names[member]}\n"
        if key == "space" and member == members[0]:
            yield SPACE
        yield from _described(definitions[member], names)
        if member == "FunctionSpace":
            yield f"\n{FUNCTION.rstrip()}"
        for inner in _inner(member, definitions, {*members}):
            yield f"\n### {names[inner]}\n"
            yield from _described(definitions[inner], names)


def _adapters(
    node: Node, definitions: Mapping[str, Node], names: Mapping[str, str]
) -> Iterator[str]:
    """Fields that most methods share, then one table per method, then the methods without words."""
    sections = {name: definitions[name] for name in _references(node)}
    shared = _shared(sections.values())
    yield "\n## adapter\n"
    yield "A union: `method` says which of these it is, `lora` by default. Most methods have:\n"
    yield from _rows(shared, names, ())
    common = dict.fromkeys(name for field in shared.values() for name in _references(field))
    for name in common:
        yield f"\n### {names[name]}\n"
        yield from _described(definitions[name], names)
    plain = []
    for name, section in sections.items():
        own = {k: v for k, v in section["properties"].items() if k not in (*shared, "method")}
        if section["description"].startswith("PEFT's `"):
            plain.append((section, own))
            continue
        yield f"\n### {names[name]}\n"
        yield section["description"].replace("\n", " ")
        if own:
            yield ""
            yield from _rows(own, names, section.get("required", ()))
        for inner in _inner(name, definitions, {*sections, *common}):
            yield f"\n#### {names[inner]}\n"
            yield from _described(definitions[inner], names)
    yield "\n### PEFT's other methods\n"
    yield "PEFT's own names and defaults; PEFT's documentation describes them.\n"
    yield "| `adapter.method` | fields and defaults |"
    yield "|---|---|"
    for section, own in plain:
        fields = ", ".join(_with_choices(key, field) for key, field in own.items())
        yield f"| `{section['properties']['method']['const']}` | {fields} |"


def _with_choices(key: str, field: Node) -> str:
    """`field: default`, and the other values that it may have where those are few."""
    first, *others = [field.get("default"), *field.get("enum", ())[1:]]
    told = f"`{key}: {_json(first)}`"
    return f"{told} (or {', '.join(f'`{_json(value)}`' for value in others)})" if others else told


def _shared(sections: Iterable[Node]) -> dict[str, Node]:
    """Fields that SHARED_BY methods at least have in the same form."""
    count: dict[str, int] = {}
    fields: dict[str, Node] = {}
    for section in sections:
        for key, field in section["properties"].items():
            form = f"{key} {json.dumps(field, sort_keys=True)}"
            count[form] = count.get(form, 0) + 1
            if count[form] == SHARED_BY:
                fields[key] = field
    return fields


def _described(definition: Node, names: Mapping[str, str]) -> Iterator[str]:
    """The docstring, the short form, and the table of a definition."""
    whole, short = _forms(definition)
    if whole.get("description"):
        yield whole["description"].replace("\n", " ") + "\n"
    if short is not None:
        yield f"Short form: {_type(short, names)}{_means(short)}.\n"
    yield from _table(whole, names)


def _forms(definition: Node) -> tuple[Node, Node | None]:
    """A definition's mapping, and what may stand in its place."""
    if "anyOf" in definition:
        whole, short = definition["anyOf"]
        return whole, short
    return definition, None


def _means(short: Node) -> str:
    return f" ({short['description']})" if "description" in short else ""


def _table(definition: Node, names: Mapping[str, str]) -> Iterator[str]:
    yield from _rows(definition["properties"], names, definition.get("required", ()))


def _rows(
    fields: Mapping[str, Node], names: Mapping[str, str], required: Iterable[str]
) -> Iterator[str]:
    yield "| key | type | default | meaning |"
    yield "|---|---|---|---|"
    for key, field in fields.items():
        default = "**required**" if key in required else ""
        if not default and "default" in field and not isinstance(field["default"], dict):
            default = f"`{_json(field['default'])}`"
        meaning = field.get("description", "").replace("\n", " ")
        cells = (f"`{key}`", _type(field, names), default, meaning)
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _type(node: Node, names: Mapping[str, str]) -> str:
    """What values a field takes, in words."""
    if "$ref" in node:
        heading = names[node["$ref"].rpartition("/")[2]]
        return f"[{heading}](#{anchor(heading)})"
    if "const" in node:
        return f"`{node['const']}`"
    if "enum" in node:
        return ", ".join(f"`{_json(value)}`" for value in node["enum"])
    for union in ("anyOf", "oneOf"):
        if union in node:
            if "discriminator" in node:
                key = node["discriminator"]["propertyName"]
                return f"mapping, told apart by `{key}`"
            members = dict.fromkeys(_type(member, names) for member in node[union])
            return " or ".join(members)
    kind = node.get("type")
    if isinstance(kind, list):
        return " or ".join("null" if one == "null" else _WORDS[one] for one in kind)
    if kind == "array":
        items = node.get("items") or node.get("prefixItems", [{}])[0]
        return f"list of {_type(items, names)}" if items else "list"
    if kind == "object":
        values = node.get("additionalProperties")
        return f"mapping to {_type(values, names)}" if isinstance(values, dict) else "mapping"
    return _WORDS.get(str(kind), "any value") + _bounds(node)


_WORDS = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "null": "null",
}
_LIMITS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}


def _bounds(node: Node) -> str:
    told = [
        f"{sign} {node[name]:g}"
        for name, sign in _LIMITS.items()
        if name in node and abs(node[name]) < LARGE
    ]
    return f" {', '.join(told)}" if told else ""


def _inner(name: str, definitions: Mapping[str, Node], seen: set[str]) -> Iterator[str]:
    """Definitions that `name` refers to, depth first; `seen` are left out, and added to."""
    for inner in _references(definitions[name]):
        if inner not in seen:
            seen.add(inner)
            yield inner
            yield from _inner(inner, definitions, seen)


def _references(node: Any) -> Iterator[str]:
    """Names of definitions in `node`, in order, each once."""
    found: dict[str, None] = {}

    def visit(part: Any) -> None:
        if isinstance(part, Mapping):
            if "$ref" in part:
                found.setdefault(part["$ref"].rpartition("/")[2])
            for key, inner in part.items():
                if key not in ("default", "discriminator"):
                    visit(inner)
        elif isinstance(part, list):
            for inner in part:
                visit(inner)

    visit(node)
    return iter(found)


def _headings(schema: Node) -> dict[str, str]:
    """The heading of each definition: its place in the file where it has one."""
    definitions, headings = schema["$defs"], dict(HEADINGS)
    for name, definition in definitions.items():
        for key in ("method", "type"):
            constant = _forms(definition)[0]["properties"].get(key, {}).get("const")
            if constant is not None:
                section = "adapter" if key == "method" else "task"
                headings.setdefault(name, f"{section}: {constant}")

    def name_fields(prefix: str, fields: Mapping[str, Node]) -> None:
        for key, field in fields.items():
            for inner in _references(field):
                if inner not in headings:
                    headings[inner] = f"{prefix}{key}"
                    whole = _forms(definitions[inner])[0]
                    name_fields(f"{prefix}{key}.", whole["properties"])

    name_fields("", schema["properties"])
    for name in list(headings):
        section = headings[name].partition(":")[0]
        if section in ("adapter", "task"):
            name_fields(f"{section}.", _forms(definitions[name])[0]["properties"])
    return headings


def anchor(heading: str) -> str:
    """The fragment under which a page's heading is found (GitHub's rule)."""
    kept = "".join(c for c in heading.lower() if c.isalnum() or c in " -_")
    return kept.replace(" ", "-")


def _json(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
