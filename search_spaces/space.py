"""The declared search space: what can be sampled, as pure data, and how one point of it is drawn.

An inactive parameter (its `when` is false) has no value, whatever the base says. Where an
expression needs that value: a `when` is false, a derived parameter is inactive itself, a constraint
does not apply, and a `times` is an error. All other names are read from the base.
"""

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import product
from math import prod
from typing import Annotated, ClassVar, Protocol, Self, cast

from pydantic import AfterValidator, field_validator, model_validator
from pydantic_core import InitErrorDetails

from search_spaces import points
from search_spaces.declared import Declared, mistake, raise_mistakes
from search_spaces.errors import SpaceError, unknown
from search_spaces.expressions import InactiveError, Lookup, holds, parse
from search_spaces.parameters import ExpressionText, Literally, Parameter, ReadParameter
from search_spaces.suggest import Suggest
from search_spaces.values import NAME, Frozen, Params, Scalar, canonical, check_name, encode, thaw

Base = Mapping[str, object]
NO_BASE: Base = {}
MOST_PARAMETERS = 200
"""Twice the names that a trial has."""
_MOST_POINTS_TRIED = 4096


class Space(Protocol):
    """What a sweep needs of a space, declared or a function."""

    @property
    def points_to_evaluate(self) -> Sequence[Mapping[str, Frozen]]: ...
    def draw(self, suggest: Suggest, base: Base = NO_BASE) -> Params: ...
    def given(self, index: int) -> dict[str, Scalar]: ...
    def check_given(self, values: Mapping[str, Scalar]) -> None: ...
    def violated(self, params: Params, base: Base = NO_BASE) -> str | None: ...
    def check_names(self, known: Collection[str]) -> None: ...
    def size(self) -> int | None: ...
    def grid(self) -> dict[str, list[Scalar]]: ...
    def describe(self) -> str: ...
    def fingerprint(self) -> str: ...
    def to_json(self) -> str: ...


class SearchSpace(Declared):
    """Parameters by dotted name, and the constraints that every point must satisfy."""

    parameters: dict[Annotated[str, AfterValidator(check_name)], ReadParameter]
    """In the order in which they are drawn, save that what an expression reads is drawn before."""
    constraints: tuple[ExpressionText, ...] = ()
    """Conditions over parameters and names of the base; a point where one is false is rejected."""
    points_to_evaluate: tuple[dict[str, Literally], ...] = ()
    """What the first trials take, in this order, instead of what the sampler would; it chooses what
    a point leaves out. Of a parameter with `times`, the value before that."""
    file_keys: ClassVar[tuple[str, ...]] = ("preset",)

    @field_validator("parameters", mode="before")
    @classmethod
    def _read_bare_expressions(cls, raw: object) -> object:
        """`lora_alpha: 2 * adapter.r` is derived: text that reads another declared parameter."""
        if not isinstance(raw, Mapping):
            return raw
        if not raw:
            raise ValueError("a space must have at least one parameter, got none")
        if len(raw) > MOST_PARAMETERS:
            raise ValueError(f"a space has at most {MOST_PARAMETERS} parameters, got {len(raw)}")
        return {
            name: {"expression": value} if _reads_any(value, raw) else value
            for name, value in raw.items()
        }

    @model_validator(mode="after")
    def _check(self) -> Self:
        raise_mistakes("SearchSpace", self._mistakes())
        return self

    def names(self) -> tuple[str, ...]:
        """All parameters in the order in which they are drawn."""
        order: dict[str, None] = {}

        def visit(name: str, path: tuple[str, ...]) -> None:
            if name in path:
                cycle = " -> ".join((*path[path.index(name) :], name))
                raise SpaceError(f"a parameter must not depend on itself: {cycle}")
            if name in self.parameters and name not in order:
                for text in self.parameters[name].expressions():
                    for read in parse(text).names:
                        visit(read, (*path, name))
                order[name] = None

        for name in self.parameters:
            visit(name, ())
        return tuple(order)

    def draw(self, suggest: Suggest, base: Base = NO_BASE) -> Params:
        """One point: the active parameters by name, lists decoded.

        `base` holds the values of the other names that expressions read. The constraints are not
        looked at (see `violated`). All randomness is in `suggest`. SpaceError if an expression has
        no value or reads an unknown name.
        """
        params: Params = {}
        lookup = self._lookup(params, base)
        for name in self.names():
            parameter = self.parameters[name]
            try:
                if parameter.when is None or holds(parameter.when, lookup):
                    params[name] = parameter.draw(name, suggest, lookup)
            except InactiveError:
                continue
            except SpaceError as error:
                raise SpaceError(f"{name}: {error}") from None
        return params

    def given(self, index: int) -> dict[str, Scalar]:
        """The point of that index in `points_to_evaluate`, encoded for Optuna."""
        given = self.points_to_evaluate[index]
        return {name: points.encoded(self.parameters[name], value) for name, value in given.items()}

    def check_given(self, values: Mapping[str, Scalar]) -> None:
        """SpaceError naming each of `values`, encoded for Optuna, that no draw could give."""
        problems = []
        for name, value in values.items():
            if name not in self.parameters:
                problems.append(unknown("parameter", name, self.parameters))
                continue
            try:
                points.encoded(self.parameters[name], cast(Frozen, value))
            except SpaceError as error:
                problems.append(f"{name} {error}")
        if problems:
            raise SpaceError("; ".join(problems))

    def violated(self, params: Params, base: Base = NO_BASE) -> str | None:
        """The first constraint that is false at `params`; None if the point may be launched."""
        return first_violated(self.constraints, self._lookup(params, base))

    def check_names(
        self, known: Collection[str], meant: Callable[[str], str | None] = lambda name: None
    ) -> None:
        """SpaceError naming every parameter and every name in an expression not among `known`, with
        what is `meant` by it where that is known otherwise than by its letters."""
        problems = [
            unknown("parameter", name, known, meant(name))
            for name in self.parameters
            if name not in known
        ]
        readable = {*known, *self.parameters}
        for text in self._expressions():
            missing = (name for name in parse(text).names if name not in readable)
            problems += [
                f"{text!r}: {unknown('name', name, readable, meant(name))}" for name in missing
            ]
        if problems:
            raise SpaceError("\n".join(problems))

    def size(self) -> int | None:
        """The number of distinct points, None if a parameter is continuous.

        An upper bound where a `when` or a constraint takes points away.
        """
        counts = [parameter.count() for parameter in self._sampled().values()]
        return None if None in counts else prod(cast(list[int], counts))

    def grid(self) -> dict[str, list[Scalar]]:
        """All values of each sampled parameter, encoded for Optuna (the axes of a grid sampler).

        SpaceError names the first parameter that is continuous. Points of the grid that differ only
        in an inactive parameter draw the same `Params`.
        """
        axes: dict[str, list[Scalar]] = {}
        for name, parameter in self._sampled().items():
            if parameter.count() is None:
                raise SpaceError(f"{name} must be finite for a grid: give it a step, or choices")
            axes[name] = [encode(value) for value in parameter.outcomes()]
        return axes

    def describe(self) -> str:
        """One line per parameter in order of drawing, one per constraint and per given point."""
        lines = []
        for name in self.names():
            parameter = self.parameters[name]
            when = f", when {parameter.when}" if parameter.when is not None else ""
            lines.append(f"{name}: {parameter.describe()}{when}")
        lines += [f"constraint: {text}" for text in self.constraints]
        return "\n".join([*lines, *(f"first: {canonical(p)}" for p in self.points_to_evaluate)])

    def fingerprint(self) -> str:
        """SHA-256 of the canonical JSON, in hex; the order of the parameters does not count."""
        text = canonical(self.model_dump(mode="json"))
        return hashlib.sha256(text.encode()).hexdigest()

    def to_json(self) -> str:
        """JSON that `load_space` takes again, in the order of declaration."""
        return self.model_dump_json()

    def __hash__(self) -> int:
        return hash(self.fingerprint())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SearchSpace) and self.fingerprint() == other.fingerprint()

    def _sampled(self) -> dict[str, Parameter]:
        return {name: item for name, item in self.parameters.items() if item.sampled}

    def _expressions(self) -> Iterator[str]:
        for parameter in self.parameters.values():
            yield from parameter.expressions()
        yield from self.constraints

    def _lookup(self, params: Params, base: Base) -> Lookup:
        def lookup(name: str) -> object:
            if name in params:
                return params[name]
            if name in self.parameters:
                raise InactiveError(name)
            if name in base:
                return thaw(cast(Frozen, base[name]))
            raise SpaceError(unknown("name", name, {*self.parameters, *base}))

        return cast(Lookup, lookup)

    def _mistakes(self) -> Iterator[InitErrorDetails]:
        try:
            self.names()
        except SpaceError as error:
            yield mistake(("parameters",), str(error), list(self.parameters))
        for name, parameter in self.parameters.items():
            if parameter.when is not None and self._never(parameter.when):
                message = f"must be true somewhere, got {parameter.when!r}"
                yield mistake(("parameters", name, "when"), message, parameter.when)
        for index, text in enumerate(self.constraints):
            if self._never(text):
                message = f"must allow some point, got {text!r}"
                yield mistake(("constraints", index), message, text)
        yield from points.mistakes(self.points_to_evaluate, self.parameters)

    def _never(self, text: str) -> bool:
        """Whether `text` is false at every point; False where that takes too long to know."""
        names = parse(text).names
        counts = [self.parameters[name].count() for name in names if name in self.parameters]
        if len(counts) < len(names) or None in counts:
            return False
        if prod(cast(list[int], counts)) > _MOST_POINTS_TRIED:
            return False
        try:
            return not any(
                holds(text, dict(zip(names, point, strict=True)).__getitem__)
                for point in product(*(self.parameters[name].outcomes() for name in names))
            )
        except SpaceError:
            return False


def first_violated(constraints: Iterable[str], lookup: Lookup) -> str | None:
    """The first of `constraints` that is false; one that reads an inactive name does not apply."""
    for text in constraints:
        try:
            if not holds(text, lookup):
                return text
        except InactiveError:
            continue
    return None


def _reads_any(value: object, declared: Mapping[str, object]) -> bool:
    if not isinstance(value, str) or NAME.fullmatch(value):
        return False
    try:
        return any("." in name and name in declared for name in parse(value).names)
    except SpaceError:
        return False
