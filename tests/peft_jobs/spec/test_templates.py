"""Row templates: columns and braces, and nothing that reaches further."""

import pytest

from peft_jobs.spec.templates import columns, render


def test_columns_are_named_once_in_order_of_first_use() -> None:
    assert columns("{b} and {a}, {b} again") == ("b", "a")
    assert columns("no column") == ()
    assert columns("{{literal}} {x}") == ("x",)


def test_render_fills_in_and_keeps_braces() -> None:
    row = {"a": 1, "b": None, "with space": "ok"}
    assert render("{a}|{b}|{with space}|{{a}}|{{{a}}}", row) == "1||ok|{a}|{1}"
    assert render("no column\n", row) == "no column\n"


def test_a_value_is_not_a_template() -> None:
    assert render("{a}", {"a": "{b} {{"}) == "{b} {{"


@pytest.mark.parametrize("template", ["{", "}", "a {b", "a} b", "{a}}", "{{a}", "{a{b}}"])
def test_lone_braces_are_refused_with_their_place(template: str) -> None:
    with pytest.raises(ValueError, match=r"template has a lone '[{}]' at character \d+"):
        columns(template)


@pytest.mark.parametrize("template", ["{}", "{ }", "a {} b"])
def test_empty_names_are_refused(template: str) -> None:
    with pytest.raises(ValueError, match="template has an empty"):
        columns(template)


@pytest.mark.parametrize("name", ["a.__class__", "a[0]", "a!r", "a:>10", "0"])
def test_neither_attributes_nor_formats_are_reached(name: str) -> None:
    assert columns("{" + name + "}") == (name,)
    assert render("{" + name + "}", {name: "plain"}) == "plain"
    with pytest.raises(KeyError):
        render("{" + name + "}", {"a": "x"})
