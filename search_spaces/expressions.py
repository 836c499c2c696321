"""A tiny language over dotted names: `2 * adapter.r`, `adapter.r >= 32 and adapter.use_dora`.

Python's syntax, a whitelist of it: constants (also `true`, `false`, `null`), lists of constants,
dotted names, arithmetic on numbers, comparisons, `and`, `or`, `not`, `a if b else c`, and the
functions below. Nothing else can be written, so a space from a stranger's file can be evaluated.
Length, depth, and the size of every number are bounded. Branches are lazy: a name is looked up only
where its value is needed.
"""

import ast
import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

from search_spaces.errors import SpaceError, unknown
from search_spaces.values import NAME, Value

Lookup: TypeAlias = Callable[[str], Value]
_Run: TypeAlias = Callable[[Lookup], Any]

MAX_CHARACTERS = 500
MAX_DEPTH = 20
_FROM = re.compile(r"""('(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*")|\.from\b""")
"""A text in quotes; or the part `from` of a name, which Python keeps for itself."""
_MAX_NUMBER = 1e100
_MAX_EXPONENT = 100


class InactiveError(Exception):
    """Raised by a lookup: the name is a parameter that has no value at this point."""


@dataclass(frozen=True)
class Expression:
    """A parsed text: what it says, which names it reads (in order of appearance), and its value."""

    text: str
    names: tuple[str, ...]
    _run: _Run

    def evaluate(self, lookup: Lookup) -> Value:
        """The value, with names read through `lookup`; SpaceError if there is none (1 / 0)."""
        try:
            value: Value = self._run(lookup)
        except SpaceError:
            raise
        except (ArithmeticError, TypeError, ValueError) as error:
            raise SpaceError(f"{self.text!r}: {error}") from None
        return value


@lru_cache(maxsize=1024)
def parse(text: str) -> Expression:
    """The expression that `text` writes; SpaceError says what cannot be read or is not allowed."""
    if len(text) > MAX_CHARACTERS:
        raise SpaceError(f"at most {MAX_CHARACTERS} characters, got {len(text)}: {text[:40]!r}...")
    names: dict[str, None] = {}
    try:
        written = _FROM.sub(lambda found: found[1] or ".from_", text.strip())
        run = _build(ast.parse(written, mode="eval").body, names, 0)
    except SyntaxError as error:
        raise SpaceError(f"cannot read {text!r}: {error.msg}") from None
    except (ValueError, ArithmeticError, TypeError, MemoryError, RecursionError) as error:
        raise SpaceError(f"cannot read {text!r}: {error}") from None
    return Expression(text, tuple(names), run)


def holds(text: str, lookup: Lookup) -> bool:
    """Whether the condition `text` is true; SpaceError if its value is neither true nor false."""
    value = parse(text).evaluate(lookup)
    if not isinstance(value, bool):
        raise SpaceError(f"{text!r} must be true or false, got {value!r}")
    return value


def _build(node: ast.expr, names: dict[str, None], depth: int) -> _Run:
    """The function that computes `node`; adds the names that it reads to `names`."""
    if depth > MAX_DEPTH:
        raise ValueError(f"at most {MAX_DEPTH} levels of nesting")

    def build(child: ast.expr) -> _Run:
        return _build(child, names, depth + 1)

    match node:
        case ast.Constant(value=bool() | str() | None as value):
            return lambda _: value
        case ast.Constant(value=int() | float() as number):
            checked = _bounded(number)
            return lambda _: checked
        case ast.Name() | ast.Attribute():
            name = _dotted(node)
            if name in _LITERALS:
                return lambda _: _LITERALS[name]
            names[name] = None
            return lambda lookup: lookup(name)
        case ast.List(elts=items) | ast.Tuple(elts=items):
            if not all(isinstance(getattr(item, "operand", item), ast.Constant) for item in items):
                raise ValueError("a list must hold constants")
            runs = [build(item) for item in items]
            return lambda lookup: [run(lookup) for run in runs]
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            inner = build(operand)
            return lambda lookup: not _boolean(inner(lookup))
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _UNARY:
            inner, sign = build(operand), _UNARY[type(op)]
            return lambda lookup: sign(_number(inner(lookup)))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            first, second, binary = build(left), build(right), _BINARY[type(op)]
            return lambda lookup: _bounded(binary(_number(first(lookup)), _number(second(lookup))))
        case ast.BoolOp(op=op, values=values):
            runs = [build(value) for value in values]
            every = all if isinstance(op, ast.And) else any
            return lambda lookup: every(_boolean(run(lookup)) for run in runs)
        case ast.IfExp(test=test, body=body, orelse=orelse):
            when, then, otherwise = build(test), build(body), build(orelse)
            return lambda lookup: (then if _boolean(when(lookup)) else otherwise)(lookup)
        case ast.Compare(left=left, ops=ops, comparators=rights) if all(
            type(op) in _COMPARE for op in ops
        ):
            runs = [build(item) for item in (left, *rights)]
            return lambda lookup: _compare([_COMPARE[type(op)] for op in ops], runs, lookup)
        case ast.Call(func=ast.Name(id=called), args=arguments, keywords=[]):
            if called not in FUNCTIONS:
                raise ValueError(unknown("function", called, FUNCTIONS))
            runs, function = [build(item) for item in arguments], FUNCTIONS[called]
            take = (lambda value: value) if called == "len" else _number
            return lambda lookup: _bounded(function(*(take(run(lookup)) for run in runs)))
    raise ValueError(
        f"{ast.unparse(node)!r} is not allowed; allowed are names, constants, "
        "arithmetic, comparisons, and/or/not, if/else and " + ", ".join(FUNCTIONS)
    )


def _dotted(node: ast.expr) -> str:
    name = ast.unparse(node)
    name = ".".join("from" if part == "from_" else part for part in name.split("."))
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no dotted lower-case name like adapter.r")
    return name


def _compare(tests: list[Callable[[Any, Any], Any]], runs: list[_Run], lookup: Lookup) -> bool:
    left = runs[0](lookup)
    for test, run in zip(tests, runs[1:], strict=True):
        right = run(lookup)
        if not test(left, right):
            return False
        left = right
    return True


def _number(value: object) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"arithmetic needs numbers, got {value!r}")
    return value


def _boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"and, or, not, if need true or false, got {value!r}")
    return value


def _bounded(value: Any) -> Any:
    if isinstance(value, complex) or not abs(value) <= _MAX_NUMBER:
        raise ValueError(f"numbers must be real and at most {_MAX_NUMBER}")
    return value


def _power(base: Any, exponent: Any) -> Any:
    if abs(exponent) > _MAX_EXPONENT:
        raise ValueError(f"an exponent must be at most {_MAX_EXPONENT}, got {exponent}")
    return base**exponent


def _round(number: Any, digits: Any = None) -> Any:
    if digits is not None and abs(digits) > _MAX_EXPONENT:  # round(1, -10**9) builds 10**10**9
        raise ValueError(f"round takes at most {_MAX_EXPONENT} digits, got {digits}")
    return round(number, digits)


FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "min": min, "max": max, "abs": abs, "round": _round, "int": int, "float": float,
    "sqrt": math.sqrt, "log": math.log, "log2": math.log2, "len": len,
}  # fmt: skip
_LITERALS = {"true": True, "false": False, "null": None}  # as YAML writes them
_UNARY: Mapping[type, Callable[..., Any]] = {ast.USub: operator.neg, ast.UAdd: operator.pos}
_BINARY: Mapping[type, Callable[..., Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Pow: _power,
    ast.Div: operator.truediv, ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod,
}  # fmt: skip
_COMPARE: Mapping[type, Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le,
    ast.Gt: operator.gt, ast.GtE: operator.ge,
    ast.In: lambda item, of: item in of, ast.NotIn: lambda item, of: item not in of,
}  # fmt: skip
