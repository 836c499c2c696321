"""Arguments of Optuna's classes, as a file gives them, checked against the class's signature."""

import inspect
import sys
from collections.abc import Collection, Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from peft_jobs.spec.mistakes import suggest

_CATCH_ALL = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def fitting(
    name: str, cls: type, given: Mapping[str, Any], ours: Collection[str] = ()
) -> dict[str, Any]:
    """`given` with each value converted to the type that `cls.__init__` declares for it.

    `ours` are arguments that a file cannot give. ValueError for an unknown, a missing or a wrong
    one; `name` is what the file calls the class.
    """
    declared = inspect.signature(cls.__init__).parameters  # type: ignore[misc]
    known = {
        key: parameter
        for key, parameter in declared.items()
        if key not in ("self", *ours) and parameter.kind not in _CATCH_ALL
    }
    for key in given:
        if key not in known:
            told = suggest(key, known) if known else "; it has none"
            raise ValueError(f"{name} has no argument {key!r}{told}")
    for key, parameter in known.items():
        if parameter.default is parameter.empty and key not in given:
            raise ValueError(f"{name} needs the argument {key!r}, and it is missing")
    names = vars(sys.modules[cls.__module__])
    return {key: _converted(f"{name}.{key}", known[key], names, given[key]) for key in given}


def _converted(path: str, parameter: inspect.Parameter, names: dict[str, Any], value: Any) -> Any:
    try:
        annotation = parameter.annotation
        kind = eval(annotation, names) if isinstance(annotation, str) else annotation
    except NameError:  # imported for type checkers only: arrays and callables, no value of a file
        kind = None
    if kind is None or (isinstance(value, bool) and "bool" not in str(kind)):
        raise ValueError(f"{path} must be {parameter.annotation}, got {value!r}")
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        texts = [item["msg"].removeprefix("Input should be ") for item in error.errors()]
        raise ValueError(f"{path} must be {' or '.join(texts)}, got {value!r}") from None
