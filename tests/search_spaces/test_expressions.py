"""The expression language: what it computes, what it refuses, and that nothing in it explodes."""

import contextlib
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search_spaces import SpaceError
from search_spaces.expressions import InactiveError, holds, parse

VALUES = {
    "adapter.r": 16,
    "adapter.method": "lora",
    "adapter.use_rslora": True,
    "adapter.target_modules": ["q_proj", "v_proj"],
    "adapter.bias": None,
    "training.learning_rate": 1e-4,
}


def value_of(text):
    return parse(text).evaluate(VALUES.__getitem__)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2 * adapter.r", 32),
        ("adapter.r // 3 % 4 - -1", 2),
        ("-adapter.r ** 2 / 4", -64.0),
        ("adapter.r if adapter.method == 'ia3' else 8", 8),
        ("4 <= adapter.r < 16", False),
        ("not adapter.use_rslora or adapter.r == 16", True),
        ("adapter.method in ['lora', 'ia3']", True),
        ("'k_proj' not in adapter.target_modules", True),
        ("adapter.target_modules == ['q_proj', 'v_proj']", True),
        ("len(adapter.target_modules)", 2),
        ("adapter.bias == null and adapter.use_rslora == true", True),
        ("min(adapter.r, 8) + max(1, 2) + abs(-3)", 13),
        ("round(adapter.r / 3, 1) + int(2.9) + float(1)", 8.3),
        ("sqrt(adapter.r) + log2(adapter.r) + log(1)", 8.0),
    ],
)
def test_expression_computes_what_python_would(text, value):
    assert value_of(text) == value


def test_names_are_dotted_and_in_order_of_appearance():
    assert parse("b.c + a * b.c if true else d_1.e").names == ("b.c", "a", "d_1.e")


def test_a_branch_that_is_not_taken_is_not_looked_up():
    assert parse("1 if true or missing else missing").evaluate({}.__getitem__) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("adapter.r *", "cannot read 'adapter.r *': invalid syntax"),
        ("adapter.r = 4", "cannot read 'adapter.r = 4': invalid syntax"),
        ("", "cannot read '': invalid syntax"),
        ("mni(1, 2)", "unknown function 'mni'; did you mean 'min'?"),
        ("__import__('os')", "unknown function '__import__'"),
        ("adapter.method.upper()", "'adapter.method.upper()' is not allowed; allowed are names"),
        ("'x'.join", "is no dotted lower-case name"),
        ("().__class__", "is no dotted lower-case name"),
        ("adapter.target_modules[0]", "is not allowed"),
        ("[x for x in adapter.target_modules]", "is not allowed"),
        ("lambda: 1", "is not allowed"),
        ("f'{adapter.r}'", "is not allowed"),
        ("min(*adapter.target_modules)", "is not allowed"),
        ("adapter.r is 4", "is not allowed"),
        ("{'a': 1}", "is not allowed"),
        ("1j", "is not allowed"),
        ("[1, adapter.r]", "a list must hold constants"),
        ("[-adapter.r]", "a list must hold constants"),
        ("1e999", "numbers must be real and at most 1e+100"),
        ("1 + " * 200 + "1", "at most 500 characters, got 801"),
        ("not " * 30 + "true", "at most 20 levels of nesting"),
        ("(" * 250 + ")" * 250, "cannot read"),
        ("-" * 499 + "1", "cannot read"),
        ("\0", "cannot read"),
    ],
)
def test_text_that_is_not_allowed_is_refused_when_parsed(text, message):
    with pytest.raises(SpaceError) as raised:
        parse(text)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 / (adapter.r - 16)", "'1 / (adapter.r - 16)': division by zero"),
        ("adapter.method * 3", "arithmetic needs numbers, got 'lora'"),
        ("adapter.use_rslora + 1", "arithmetic needs numbers, got True"),
        ("not adapter.r", "and, or, not, if need true or false, got 16"),
        ("adapter.method < 3", "not supported between"),
        ("3 in adapter.r", "not iterable"),
        ("sqrt(-1)", "math domain error"),
        ("(-8) ** 0.5", "numbers must be real"),
        ("9 ** 9 ** 9", "an exponent must be at most 100, got 387420489"),
        ("(10 ** 100) ** 100", "at most 1e+100"),
        ("(10 ** 99.0) ** 99", "out of range"),
        ("round(1, -10 ** 9)", "round takes at most 100 digits"),
        ("'ab' * 10 ** 9", "arithmetic needs numbers, got 'ab'"),
    ],
)
def test_a_value_that_does_not_exist_is_refused_before_it_is_made(text, message):
    tracemalloc.start()
    try:
        with pytest.raises(SpaceError) as raised:
            value_of(text)
        _, most_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert message in str(raised.value)
    assert most_bytes < 2**20, "what would take long to make is large too"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("adapter.from == null", True),
        ("adapter.from == 'a.from' or adapter.from == \"b\\'.from\"", False),
        ("'x.from' == 'x' + 1 if false else 'x.from'", "x.from"),
        ("adapter.from.revision == 'main'", True),
        ("adapter.fromage", 3),
    ],
)
def test_a_name_may_have_a_part_that_is_a_word_of_pythons(text, value):
    known = {"adapter.from": None, "adapter.from.revision": "main", "adapter.fromage": 3}
    parsed = parse(text)
    assert parsed.evaluate(known.__getitem__) == value
    assert set(parsed.names) <= known.keys()


def test_a_condition_must_be_true_or_false():
    assert holds("adapter.r > 4", VALUES.__getitem__)
    with pytest.raises(SpaceError, match="must be true or false, got 16"):
        holds("adapter.r", VALUES.__getitem__)


def test_an_inactive_name_passes_through_unwrapped():
    def lookup(name):
        raise InactiveError(name)

    with pytest.raises(InactiveError):
        parse("a + 1").evaluate(lookup)


@settings(deadline=None)
@given(st.text(alphabet="ab.1290()[]+-*/%<>=!,'\" \n_notifelsdr", max_size=40))
def test_any_text_either_evaluates_or_raises_space_error(text):
    with contextlib.suppress(SpaceError):
        parse(text).evaluate(lambda name: 3)


@settings(deadline=None)
@given(st.integers(-99, 99), st.integers(-99, 99), st.sampled_from(["+", "-", "*", "<", "=="]))
def test_integers_agree_with_python(a, b, op):
    assert parse(f"a.b {op} ({b})").evaluate({"a.b": a}.__getitem__) == eval(f"({a}) {op} ({b})")
