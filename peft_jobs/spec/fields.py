"""Field types shared by the spec's sections: strict where YAML is lax, and bounded."""

from typing import Annotated, Any, ClassVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
)

from peft_jobs.spec import templates


class Section(BaseModel):
    """A part of a spec: frozen, no unknown keys, finite numbers only."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )
    LATER: ClassVar[tuple[str, ...]] = ()
    """Fields that came after version 0.1. One that has its default is not written: a section says
    what it said before there was such a field, and equal specs stay equal."""

    @model_serializer(mode="wrap")
    def _as_before(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found: dict[str, Any] = serialize(self)
        fields = type(self).model_fields
        return {
            name: value
            for name, value in found.items()
            if name not in self.LATER
            or getattr(self, name) != fields[name].get_default(call_default_factory=True)
        }


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(f"must be a number, got {str(value).lower()}")
    return value


def _template(value: Any) -> Any:
    if isinstance(value, str):
        templates.columns(value)
    return value


def _has_column(value: str) -> str:
    if not templates.columns(value):
        column = value if value.isidentifier() else "sentence"
        raise ValueError(f"must name a column in braces, e.g. {{{column}}}; got {value!r}")
    return value


def _no_bare_column(value: str) -> str:
    if value.isidentifier():
        raise ValueError(
            f"must name a column in braces, e.g. {{{value}}}, or be more than one bare word, where "
            f"all rows share it; got {value!r}"
        )
    return value


def _names(value: Any) -> Any:
    """Lists of names without order or repeats: equal sets give equal specs."""
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return tuple(sorted(set(value)))
    return value


def _function(value: str) -> str:
    module, colon, name = value.partition(":")
    if not colon or not all(part.isidentifier() for part in (*module.split("."), name)):
        raise ValueError(f"must be written module:function, got {value!r}")
    return value


Names = Annotated[tuple[str, ...], BeforeValidator(_names)]
Functions = Annotated[
    tuple[Annotated[str, AfterValidator(_function)], ...], BeforeValidator(_names)
]
"""Python functions as `module:function`, importable where the trial runs."""
MAX_NUMBER = 10**12
"""What a number may be at most: more is a slip, and databases end at 2**63."""
Number = Annotated[float, BeforeValidator(_no_bool)]
Count = Annotated[int, BeforeValidator(_no_bool), Field(ge=1, le=MAX_NUMBER)]
Whole = Annotated[int, BeforeValidator(_no_bool), Field(ge=0, le=MAX_NUMBER)]
Width = Annotated[int, BeforeValidator(_no_bool), Field(ge=1, le=2**16)]
"""A rank or a batch; no layer is wider, and no larger batch fits a device."""
Tokens = Annotated[int, BeforeValidator(_no_bool), Field(ge=1, le=10**7)]
NonNegative = Annotated[float, BeforeValidator(_no_bool), Field(ge=0, le=MAX_NUMBER)]
Positive = Annotated[float, BeforeValidator(_no_bool), Field(gt=0, le=MAX_NUMBER)]
Rate = Annotated[float, BeforeValidator(_no_bool), Field(ge=0, lt=1)]
Share = Annotated[float, BeforeValidator(_no_bool), Field(gt=0, lt=1)]
"""A part of a whole, written with a decimal point."""


def _all_rows(value: Any) -> Any:
    """1.0 is a share: the whole."""
    return None if isinstance(value, float) and value == 1 else value


def _share_or_count(value: float) -> float | int:
    if 0 < value < 1:
        return value
    if value == 1:  # a dump would write it as 1.0
        raise ValueError("must be 1.0 for all rows, or at least 2 rows, got 1")
    if value > 1 and value == int(value):
        return int(value)
    raise ValueError(f"must be a share between 0 and 1 or a whole number of rows, got {value:g}")


ShareOrCount = Annotated[
    Annotated[float, AfterValidator(_share_or_count)] | None,
    BeforeValidator(_all_rows),
    BeforeValidator(_no_bool),
]
"""A share below 1, a count, or None for everything, which 1.0 means too."""
Seed = Annotated[int, BeforeValidator(_no_bool), Field(ge=0, lt=2**32)]
_AnyTemplate = Annotated[str, BeforeValidator(_template), Field(min_length=1)]
Template = Annotated[_AnyTemplate, AfterValidator(_has_column)]
"""A text that differs from row to row: without a column, all would be the same."""
Instruction = Annotated[_AnyTemplate, AfterValidator(_no_bare_column)]
"""A text that all rows may share; one bare word is a column whose braces were forgotten."""


def as_mapping(key: str) -> BeforeValidator:
    """A section that may be written as the text of its field `key` alone."""
    return BeforeValidator(lambda value: {key: value} if isinstance(value, str) else value)
