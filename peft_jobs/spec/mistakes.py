"""Turn pydantic's ValidationError into one plain line per mistake, with suggestions for typos."""

import difflib
import types
import typing
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

_WORDS = {
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "must be a whole number"),
    "int_parsing_size": "must be a whole number of fewer digits",
    **dict.fromkeys(("float_type", "float_parsing"), "must be a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "must be true or false"),
    "string_type": "must be text",
    "string_too_short": "must not be empty",
    "tuple_type": "must be a list",
}
"""What must hold, by pydantic's name of the mistake; the others say it well enough themselves."""


def suggest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'? known: ...` for a misspelled `name`."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    hint = f"; did you mean {close[0]!r}?" if close else ";"
    return f"{hint} known: {', '.join(names)}"


def mistakes(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """One line per mistake: dotted path, what must hold, what came."""
    found: dict[str, list[str]] = {}
    for item in error.errors(include_url=False):
        path, text, got = _parts(dict(item), model)
        texts = found.setdefault(f"{path}\n{got}", [])
        if texts and got and text.startswith("must be "):  # another member of a union
            texts[0] += f" or {text.removeprefix('must be ')}"
        else:
            texts.append(text)
    return [
        f"{key.partition(chr(10))[0]}: {text}{key.partition(chr(10))[2]}"
        for key, texts in found.items()
        for text in texts
    ]


def _parts(item: dict[str, Any], model: type[BaseModel]) -> tuple[str, str, str]:
    """Dotted path, what must hold, and `, got ...` where that is not said by then."""
    path, owner = _walk(item["loc"], model)
    dotted = ".".join(path) or "file"
    kind = item["type"]
    if kind == "extra_forbidden":
        parent = ".".join(path[:-1]) or "the file"
        known = owner.model_fields if owner is not None else ()
        return dotted, f"unknown key {path[-1]!r} in {parent}{suggest(path[-1], known)}", ""
    if kind == "missing":
        return dotted, "is required, and missing", ""
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        tag = item["ctx"]["discriminator"].strip("'")
        given = item["ctx"].get("tag")
        if given is None:
            return f"{dotted}.{tag}", "must be given, got nothing", ""
        known = item["ctx"]["expected_tags"].strip("'").split("', '")
        return f"{dotted}.{tag}", f"unknown {tag} {given!r}{suggest(given, known)}", ""
    if kind == "incompatible":
        return ".".join([*path, "adapter.method"]), item["msg"], ""
    got = f", got {_short(item['input'])}"
    if kind in ("model_type", "dict_type", "model_attributes_type"):
        return dotted, "must be a mapping of keys to values", got
    message = item["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if kind == "value_error":
        return dotted, message, ""
    message = _WORDS.get(kind, message.removeprefix("Input should be "))
    message = message.removeprefix("String should ").removeprefix("have ")
    if not message.startswith(("must", "give")):
        message = f"must {message}" if message.startswith("match") else f"must be {message}"
    return dotted, message, got


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _walk(
    loc: Sequence[int | str], model: type[BaseModel]
) -> tuple[list[str], type[BaseModel] | None]:
    """The path without union tags, and the model that holds its last part."""
    path: list[str] = []
    owners: list[type[BaseModel]] = [model]
    owner: type[BaseModel] | None = model
    for index, part in enumerate(loc):
        last = index == len(loc) - 1
        found = [o for o in owners if isinstance(part, str) and part in o.model_fields]
        if found:
            path.append(str(part))
            owner = found[0]
            owners = list(models_in(owner.model_fields[str(part)].annotation))
        elif last and path and (_is_tag(str(part)) or _is_member(str(part), owners)):
            pass
        elif isinstance(part, int) or last or not owners:
            path.append(str(part))
            owner = owners[0] if owners else None
        else:  # a union's tag: keep the members that it may mean
            owners = [o for o in owners if part in _tags(o)] or owners
    return path, owner


def _is_tag(part: str) -> bool:
    """Whether a part of a location only says which member of a union was tried."""
    return part in ("str", "int", "float", "bool", "share", "source") or "[" in part


def _is_member(part: str, owners: Sequence[type[BaseModel]]) -> bool:
    """Whether a part of a location is the tag of one of several models."""
    return len(owners) > 1 and any(part in _tags(owner) for owner in owners)


def _tags(model: type[BaseModel]) -> set[str]:
    tags = {model.__name__, model.__name__.removesuffix("Spec").lower()}
    for field in model.model_fields.values():
        if typing.get_origin(field.annotation) is typing.Literal:
            tags.update(str(value) for value in typing.get_args(field.annotation))
    return tags


def models_in(annotation: Any) -> Iterable[type[BaseModel]]:
    """The models that a field may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif typing.get_origin(annotation) in (typing.Annotated, typing.Union, types.UnionType):
        for argument in typing.get_args(annotation):
            yield from models_in(argument)
