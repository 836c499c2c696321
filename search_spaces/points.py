"""Points that a person gives: what the first trials take instead of a sampler's choice."""

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction

from pydantic_core import InitErrorDetails

from search_spaces.declared import mistake
from search_spaces.errors import SpaceError, unknown
from search_spaces.expressions import holds, parse
from search_spaces.parameters import Categorical, Float, Int, Parameter
from search_spaces.values import Frozen, Scalar, canonical, encode, thaw

Given = Mapping[str, Frozen]
"""Values by parameter; those that are left out are sampled."""


def encoded(parameter: Parameter, value: Frozen) -> Scalar:
    """`value` as Optuna stores what it samples; SpaceError if the parameter cannot have it."""
    if isinstance(parameter, Float):
        if isinstance(value, int | float) and not isinstance(value, bool):
            step = 0 if parameter.step is None else Fraction(str(parameter.step))
            steps = Fraction(str(value)) - Fraction(str(parameter.low))
            if parameter.low <= value <= parameter.high and not (step and steps % step):
                return float(value)
    elif isinstance(parameter, Int):
        if type(value) is int and value in range(parameter.low, parameter.high + 1, parameter.step):
            return value
    elif isinstance(parameter, Categorical):
        codes = [encode(choice) for choice in parameter.choices]
        if encode(value) in codes:
            return codes[codes.index(encode(value))]
    else:
        raise SpaceError("is not sampled: leave it out")
    raise SpaceError(f"must be {parameter.describe()}, got {canonical(value)}")


def mistakes(
    points: Sequence[Given], parameters: Mapping[str, Parameter]
) -> Iterator[InitErrorDetails]:
    """What is wrong with given points, each line at its place."""
    for index, point in enumerate(points):
        for name, value in point.items():
            place = ("points_to_evaluate", index, name)
            if name not in parameters:
                yield mistake(place, unknown("parameter", name, parameters), value)
                continue
            try:
                encoded(parameters[name], value)
            except SpaceError as error:
                yield mistake(place, str(error), value)
            when = parameters[name].when
            if when is not None and _fails(when, point):
                message = f"has no value here, as its `when` is false: {when}"
                yield mistake(place, message, value)


def _fails(when: str, point: Given) -> bool:
    """Whether `when` is false at `point`; False where the point leaves that open."""
    values = {name: thaw(value) for name, value in point.items()}
    try:
        return values.keys() >= set(parse(when).names) and not holds(when, values.__getitem__)
    except SpaceError:
        return False
