"""The escape hatch: a space written as a Python function `trial -> params`.

The function takes what an Optuna trial offers (`Suggest`) and returns dotted names with JSON
values. Its module is imported when names are checked or a point is drawn, never before.
"""

import hashlib
from collections.abc import Callable, Collection, Mapping
from importlib import import_module
from typing import Annotated, NoReturn, cast

from pydantic import Field

from search_spaces.declared import Declared
from search_spaces.errors import SpaceError
from search_spaces.expressions import InactiveError
from search_spaces.parameters import ExpressionText
from search_spaces.space import NO_BASE, Base, first_violated
from search_spaces.suggest import Suggest
from search_spaces.values import Frozen, Params, Scalar, Value, canonical, check_name, freeze, thaw


class FunctionSpace(Declared):
    """A space whose points come from `function`; constraints apply as in a declared one."""

    function: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
    """`module:name`, importable where the sweep is driven."""
    constraints: tuple[ExpressionText, ...] = ()
    """Conditions as in `SearchSpace`; a name that neither point nor base has counts as inactive."""

    @property
    def points_to_evaluate(self) -> tuple[()]:
        """None: a function chooses its own first points."""
        return ()

    def draw(self, suggest: Suggest, base: Base = NO_BASE) -> Params:
        """What the function returns for `suggest`; SpaceError if that is no `Params`."""
        raw = self._load()(suggest)
        if not isinstance(raw, Mapping):
            raise SpaceError(f"{self.function} must return a dict, got {type(raw).__name__}")
        try:
            return {check_name(str(name)): thaw(freeze(value)) for name, value in raw.items()}
        except ValueError as error:
            raise SpaceError(f"{self.function}: {error}") from None

    def given(self, index: int) -> dict[str, Scalar]:
        """Always IndexError: there are none."""
        raise IndexError(index)

    def check_given(self, values: Mapping[str, Scalar]) -> None:
        """Nothing: what the function takes is known only when it draws."""

    def violated(self, params: Params, base: Base = NO_BASE) -> str | None:
        """The first constraint that is false at `params`; None if the point may be launched."""

        def lookup(name: str) -> Value:
            if name in params:
                return params[name]
            if name in base:
                return thaw(cast(Frozen, base[name]))
            raise InactiveError(name)

        return first_violated(self.constraints, lookup)

    def check_names(
        self, known: Collection[str], meant: Callable[[str], str | None] = lambda name: None
    ) -> None:
        """SpaceError if the function cannot be imported; its names are known only when drawn."""
        self._load()

    def size(self) -> int | None:
        """None: nobody can count what a function may return."""
        return None

    def grid(self) -> NoReturn:
        """Always SpaceError."""
        raise SpaceError(f"{self.function} cannot be enumerated: a grid needs declared parameters")

    def describe(self) -> str:
        """One line for the function, one per constraint."""
        lines = [f"function: {self.function}"]
        return "\n".join([*lines, *(f"constraint: {text}" for text in self.constraints)])

    def fingerprint(self) -> str:
        """SHA-256 of the canonical JSON, in hex: the function's name, not its code."""
        text = canonical(self.model_dump(mode="json"))
        return hashlib.sha256(text.encode()).hexdigest()

    def to_json(self) -> str:
        """JSON that `load_space` takes again."""
        return self.model_dump_json()

    def _load(self) -> Callable[[Suggest], object]:
        module, _, name = self.function.partition(":")
        try:
            function = getattr(import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise SpaceError(f"cannot import {self.function}: {error}") from error
        if not callable(function):
            raise SpaceError(f"{self.function} must be a function, got {type(function).__name__}")
        return cast(Callable[[Suggest], object], function)
