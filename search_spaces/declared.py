"""The base of everything read from a file: frozen, and a misspelled key is answered with the keys.

All mistakes are reported in one pydantic ValidationError, each with its place (`loc`).
"""

from collections.abc import Iterable
from typing import Any, ClassVar, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)
from pydantic_core import InitErrorDetails

from search_spaces.errors import SpaceError, unknown

Place = tuple[str | int, ...]


class Declared(BaseModel):
    """A frozen pydantic model without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    file_keys: ClassVar[tuple[str, ...]] = ()
    """Keys of the file form that are resolved before the model sees them."""

    @model_validator(mode="wrap")
    @classmethod
    def _suggest_keys(cls, raw: object, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(raw)
        except ValidationError as error:
            raise ValidationError.from_exception_data(
                cls.__name__, [cls._line(line) for line in error.errors()]
            ) from None

    @classmethod
    def _line(cls, line: Any) -> InitErrorDetails:
        loc, raw = line["loc"], line["input"]
        if line["type"] == "extra_forbidden":
            known = (*cls.file_keys, *cls.model_fields)
            return mistake(loc, unknown("key", str(loc[-1]), known), raw)
        ctx = line.get("ctx", {})
        return InitErrorDetails(type=line["type"], loc=loc, input=raw, ctx=ctx)


def mistake(loc: Place, message: str, raw: object) -> InitErrorDetails:
    """One line of a ValidationError: what is wrong at `loc`, and what was given."""
    ctx = {"error": SpaceError(message)}
    return InitErrorDetails(type="value_error", loc=loc, input=raw, ctx=ctx)


def raise_mistakes(title: str, mistakes: Iterable[InitErrorDetails]) -> None:
    """Raise all `mistakes` as one ValidationError; return if there are none."""
    if lines := list(mistakes):
        raise ValidationError.from_exception_data(title, lines)
