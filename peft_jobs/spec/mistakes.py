"""What is wrong in a file: pydantic's ValidationError as `Mistake`s, and their one wording."""

import difflib
import types
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
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
MAX_NAMES_LISTED = 50
"""All of PEFT's methods (38); more, as a trial's parameters (183), would bury other mistakes."""


@dataclass(frozen=True)
class Mistake:
    """One thing that is wrong in a file, as data until it is printed: `str` is its line."""

    path: tuple[str, ...]
    """Keys from the top of the file; empty for the file itself."""
    must: str
    """What must hold, or what is wrong."""
    got: str | None = None
    """What came, shortened; None if `must` says it, or nothing came."""
    known: tuple[str, ...] | None = None
    """Of an unknown key: the keys that there are beside it; empty if they cannot be told."""
    meant: str | None = None
    """Of an unknown key: what is meant, where that is known otherwise than by its letters."""

    def __str__(self) -> str:
        text = f"{'.'.join(self.path) or 'file'}: {self.must}"
        if self.known is not None:
            text += f" in {'.'.join(self.path[:-1]) or 'the file'}"
            text += suggest(self.path[-1], self.known, self.meant) if self.known else ""
        return text if self.got is None else f"{text}, got {self.got}"


def suggest(name: str, known: Iterable[str], meant: str | None = None) -> str:
    """`; did you mean 'x' or 'y'? known: ...` for a misspelled `name`: `meant`, or the nearest two,
    and all.

    More than MAX_NAMES_LISTED are not listed. `search_spaces.errors.unknown` says the same.
    """
    names = sorted(set(known))
    near = [meant] if meant is not None else difflib.get_close_matches(name, names, n=2)
    close = " or ".join(map(repr, near))
    hint = f" did you mean {close}?" if close else ""
    if len(names) <= MAX_NAMES_LISTED:
        hint += f" known: {', '.join(names) or 'none'}"
    return hint and f";{hint}"


def mistakes(error: ValidationError, model: type[BaseModel] | None = None) -> list[Mistake]:
    """All that `error` holds; what each member of a union must be is one mistake.

    `model`, which was validated, tells keys from tags of unions, which no path holds, and knows the
    keys; without it, paths hold the tags too, and nothing is suggested.
    """
    found: dict[tuple[tuple[str, ...], str | None], list[Mistake]] = {}
    for item in error.errors(include_url=False):
        mistake = _mistake(dict(item), model)
        same = found.setdefault((mistake.path, mistake.got), [])
        if same and mistake.must == same[0].must:
            continue
        if same and mistake.got is not None and mistake.must.startswith("must be "):
            either = f"{same[0].must} or {mistake.must.removeprefix('must be ')}"
            same[0] = replace(same[0], must=either)  # another member of a union
        else:
            same.append(mistake)
    return [mistake for same in found.values() for mistake in same]


def _mistake(item: dict[str, Any], model: type[BaseModel] | None) -> Mistake:
    """The mistake in one of pydantic's `ErrorDetails`."""
    loc, kind = item["loc"], item["type"]
    path, owner = _walk(loc, model) if model is not None else (tuple(map(str, loc)), None)
    if kind == "extra_forbidden":
        known = tuple(owner.model_fields) if owner is not None else ()
        return Mistake(path, f"unknown key {path[-1]!r}", known=known)
    if kind == "missing":
        return Mistake(path, "is required, and missing")
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        tag = item["ctx"]["discriminator"].strip("'")
        given = item["ctx"].get("tag")
        if given is None:
            return Mistake((*path, tag), "must be given", "nothing")
        tags = item["ctx"]["expected_tags"].strip("'").split("', '")
        return Mistake((*path, tag), f"unknown {tag} {given!r}{suggest(given, tags)}")
    if kind == "incompatible":
        return Mistake((*path, "adapter", "method"), item["msg"])
    if kind == "continuation":
        return Mistake((*path, "from"), item["msg"])
    message = item["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if kind == "value_error":  # written by our validators, which end it with what came
        must, told, got = message.rpartition(", got ")
        return Mistake(path, must, got) if told else Mistake(path, message)
    got = _short(item["input"])
    if kind in ("model_type", "dict_type", "model_attributes_type"):
        return Mistake(path, "must be a mapping of keys to values", got)
    message = _WORDS.get(kind, message.removeprefix("Input should be "))
    message = message.removeprefix("String should ").removeprefix("have ")
    if not message.startswith(("must", "give")):
        message = f"must {message}" if message.startswith("match") else f"must be {message}"
    return Mistake(path, message, got)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _walk(
    loc: Sequence[int | str], model: type[BaseModel]
) -> tuple[tuple[str, ...], type[BaseModel] | None]:
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
    return tuple(path), owner


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
