"""The five kinds of parameter: float, int, categorical, fixed, derived; each may have a `when`.

Float, int and categorical are sampled, in Optuna's dialect and under Optuna's rules. Each kind
answers: `draw`, one value; `count`, how many values it has (None if that is unbounded or depends on
others); `outcomes`, those values in order, where `count` is a number; `describe`, for people.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal, Self, TypeAlias

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    PlainValidator,
    StrictBool,
    WrapValidator,
    model_validator,
)

from search_spaces.declared import Declared
from search_spaces.errors import SpaceError, unknown
from search_spaces.expressions import InactiveError, Lookup, parse
from search_spaces.suggest import Suggest, num_on_grid, on_grid
from search_spaces.values import Frozen, Scalar, Value, canonical, encode, freeze, number, thaw

MOST_VALUES = 10**12
"""Steps between low and high: Optuna divides in decimals of 28 digits."""
LARGEST_WHOLE = 2**53
"""Above it floats skip whole numbers, and Optuna keeps every number as a float."""

Number = Annotated[float, BeforeValidator(number), Field(allow_inf_nan=False)]
Whole = Annotated[int, BeforeValidator(number)]
Literally = Annotated[Frozen, PlainValidator(freeze), PlainSerializer(lambda value: value)]
ExpressionText = Annotated[str, AfterValidator(lambda text: parse(text).text)]


class _Parameter(Declared):
    when: ExpressionText | None = None
    """The parameter is active where this is true; where it is not, it is absent from the point."""

    sampled: ClassVar[bool] = True

    def expressions(self) -> tuple[str, ...]:
        """The texts whose names must be known before this parameter can be drawn."""
        return (self.when,) if self.when is not None else ()


class Float(_Parameter):
    """A real number in [low, high], or on the grid low, low + step, ..., high."""

    type: Literal["float"] = "float"
    low: Number
    high: Number
    step: Number | None = None
    log: StrictBool = False
    """Sample the logarithm uniformly; excludes `step`, as in Optuna."""
    times: ExpressionText | None = None
    """What is sampled is multiplied by this: one range for what others of the parameters move, as
    the method does the learning rate. Must have a value at every point."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_range(self.low, self.high, self.step, self.log, "low must be > 0 with log")
        if self.log and self.step is not None:
            raise ValueError(f"step must be left out with log, got step={self.step}")
        return self

    def expressions(self) -> tuple[str, ...]:
        own = () if self.times is None else (self.times,)
        return (*super().expressions(), *own)

    def draw(self, name: str, suggest: Suggest, lookup: Lookup) -> Value:
        try:
            factor = 1.0 if self.times is None else parse(self.times).evaluate(lookup)
        except InactiveError as error:
            raise SpaceError(
                f"times {self.times!r} reads {error}, which has no value where its `when` is "
                "false: write VALUE if CONDITION else 1"
            ) from None
        if isinstance(factor, bool) or not isinstance(factor, int | float):
            raise SpaceError(f"times must be a number, got {factor!r}")
        value = suggest.suggest_float(name, self.low, self.high, step=self.step, log=self.log)
        return value if self.times is None else value * factor

    def count(self) -> int | None:
        if self.times is not None:
            return None
        if self.step is None:
            return 1 if self.low == self.high else None
        return num_on_grid(self.low, self.high, self.step)

    def outcomes(self) -> Sequence[Value]:
        step = self.step or 1.0
        return [on_grid(self.low, step, index) for index in range(self.count() or 0)]

    def describe(self) -> str:
        times = "" if self.times is None else f", times {self.times}"
        return f"float {self.low} to {self.high}{_scale(self.step, self.log)}{times}"


class Int(_Parameter):
    """A whole number in {low, low + step, ..., high}."""

    type: Literal["int"] = "int"
    low: Whole
    high: Whole
    step: Whole = 1
    log: StrictBool = False
    """Sample the logarithm uniformly (every whole number stays possible); excludes `step`."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if max(abs(self.low), abs(self.high), abs(self.step)) > LARGEST_WHOLE:
            raise ValueError(f"whole numbers must be at most 2**53, got high={self.high}")
        _check_range(self.low, self.high, self.step, self.log, "low must be >= 1 with log")
        if self.log and self.step != 1:
            raise ValueError(f"step must be left out with log, got step={self.step}")
        return self

    def draw(self, name: str, suggest: Suggest, lookup: Lookup) -> Value:
        return suggest.suggest_int(name, self.low, self.high, step=self.step, log=self.log)

    def count(self) -> int | None:
        return (self.high - self.low) // self.step + 1

    def outcomes(self) -> Sequence[Value]:
        return range(self.low, self.high + 1, self.step)

    def describe(self) -> str:
        step = self.step if self.step != 1 else None
        return f"int {self.low} to {self.high}{_scale(step, self.log)}"


class Categorical(_Parameter):
    """One of `choices`: scalars, null or lists."""

    type: Literal["categorical"] = "categorical"
    choices: tuple[Literally, ...]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.choices:
            raise ValueError("choices must not be empty, got []")
        seen: dict[Scalar, Frozen] = {}
        for choice in self.choices:
            code = encode(choice)
            if code in seen:  # 1, 1.0 and true are equal in Python, and so for Optuna
                pair = f"{canonical(seen[code])} and {canonical(choice)}"
                raise ValueError(f"choices must differ for Optuna, got {pair}")
            seen[code] = choice
        return self

    def draw(self, name: str, suggest: Suggest, lookup: Lookup) -> Value:
        codes = [encode(choice) for choice in self.choices]
        drawn = suggest.suggest_categorical(name, codes)
        return thaw(self.choices[codes.index(drawn)])

    def count(self) -> int | None:
        return len(self.choices)

    def outcomes(self) -> Sequence[Value]:
        return [thaw(choice) for choice in self.choices]

    def describe(self) -> str:
        return "one of " + ", ".join(canonical(choice) for choice in self.choices)


class Fixed(_Parameter):
    """Always `value`: a scalar, null or a list."""

    type: Literal["fixed"] = "fixed"
    value: Literally

    sampled: ClassVar[bool] = False

    def draw(self, name: str, suggest: Suggest, lookup: Lookup) -> Value:
        return thaw(self.value)

    def count(self) -> int | None:
        return 1

    def outcomes(self) -> Sequence[Value]:
        return [thaw(self.value)]

    def describe(self) -> str:
        return canonical(self.value)


class Derived(_Parameter):
    """The value of `expression`; inactive where it reads an inactive parameter."""

    type: Literal["derived"] = "derived"
    expression: ExpressionText

    sampled: ClassVar[bool] = False

    def expressions(self) -> tuple[str, ...]:
        return (*super().expressions(), self.expression)

    def draw(self, name: str, suggest: Suggest, lookup: Lookup) -> Value:
        return parse(self.expression).evaluate(lookup)

    def count(self) -> int | None:
        return None

    def outcomes(self) -> Sequence[Value]:
        raise SpaceError(f"{self.expression!r} has no values of its own")

    def describe(self) -> str:
        return f"= {self.expression}"


Parameter: TypeAlias = Float | Int | Categorical | Fixed | Derived
"""A declared parameter, of any of the five kinds."""
KINDS: Mapping[str, type[Parameter]] = {
    "float": Float, "int": Int, "categorical": Categorical, "fixed": Fixed, "derived": Derived,
}  # fmt: skip


def read_parameter(raw: object) -> Parameter:
    """The parameter that the file form `raw` declares; ValueError says what is wrong with it.

    Without `type`: `choices` is categorical, `expression` derived, `value` or a bare scalar fixed,
    `low` and `high` int if both are whole, else float.
    """
    if isinstance(raw, Float | Int | Categorical | Fixed | Derived):
        return raw
    if isinstance(raw, list | tuple):
        raise ValueError("a list must say what it is: {choices: [...]} or {value: [...]}")
    if not isinstance(raw, Mapping):
        return Fixed.model_validate({"value": raw})
    kind = str(raw["type"]) if "type" in raw else _guess(raw)
    if kind not in KINDS:
        raise ValueError(unknown("type", kind, KINDS))
    return KINDS[kind].model_validate({**raw, "type": kind})


ReadParameter = Annotated[Parameter, WrapValidator(lambda raw, _: read_parameter(raw))]


def _guess(raw: Mapping[object, object]) -> str:
    for key, kind in (("choices", "categorical"), ("expression", "derived"), ("value", "fixed")):
        if key in raw:
            return kind
    if "low" in raw and "high" in raw:
        whole = all(type(raw[end]) is int for end in ("low", "high"))
        return "int" if whole else "float"
    keys = ", ".join(str(key) for key in raw) or "none"
    raise ValueError(f"needs type, low and high, choices, value or expression, got keys: {keys}")


def _check_range(low: float, high: float, step: float | None, log: bool, positive: str) -> None:
    got = f"got low={low}, high={high}"
    if low > high:
        raise ValueError(f"low must be <= high, {got}")
    if log and low <= 0:
        raise ValueError(f"{positive}, {got}")
    if step is None:
        return
    if step <= 0:
        raise ValueError(f"step must be > 0, got step={step}")
    if num_on_grid(low, high, step) > MOST_VALUES:
        raise ValueError(f"step must give at most {MOST_VALUES:,} values, {got}, step={step}")
    last = on_grid(low, step, num_on_grid(low, high, step) - 1)
    if last != high:
        raise ValueError(f"step must divide high - low, {got}, step={step}; use high={last:.15g}")


def _scale(step: float | None, log: bool) -> str:
    return ", log" if log else "" if step is None else f", step {step}"
