"""Mistakes as plain lines: path, what must hold, what came, and the nearest name."""

from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from peft_jobs import TrialSpec
from peft_jobs.spec.mistakes import MAX_NAMES_LISTED, Mistake, mistakes, suggest
from search_spaces.errors import unknown


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid")
    kind: Literal["part"] = "part"
    size: int = Field(default=1, ge=1)


class Other(BaseModel):
    model_config = ConfigDict(extra="forbid")
    kind: Literal["other"]
    weight: float = 0.0


class Whole(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    part: Part = Part()
    chosen: Annotated[Part | Other, Field(discriminator="kind")] = Part()
    sizes: dict[str, float] = {}
    steps: tuple[int, ...] = ()
    either: int | str = 0

    @field_validator("name")
    @classmethod
    def _is_lower(cls, name: str) -> str:
        if name.lower() != name:
            raise ValueError(f"must be lower, got {name}")
        return name


def whole_error(**given: Any) -> ValidationError:
    with pytest.raises(ValidationError) as caught:
        Whole.model_validate(given)
    return caught.value


def lines(**given: Any) -> list[str]:
    return [str(mistake) for mistake in mistakes(whole_error(**given), Whole)]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            {"nmae": 1},
            Mistake(
                ("nmae",),
                "unknown key 'nmae'",
                known=("name", "part", "chosen", "sizes", "steps", "either"),
            ),
        ),
        (
            {"part": {"a.b": 1}},
            Mistake(("part", "a.b"), "unknown key 'a.b'", known=("kind", "size")),
        ),
        (
            {"chosen": {"kind": "other", "size": 1}},
            Mistake(("chosen", "size"), "unknown key 'size'", known=("kind", "weight")),
        ),
        (
            {"chosen": {"kind": "othr"}},
            Mistake(
                ("chosen", "kind"),
                "unknown kind 'othr'; did you mean 'other'? known: other, part",
            ),
        ),
        ({"chosen": {}}, Mistake(("chosen", "kind"), "must be given", "nothing")),
        ({"steps": [1, "a"]}, Mistake(("steps", "1"), "must be a whole number", "'a'")),
        ({"sizes": {"a.b": "x"}}, Mistake(("sizes", "a.b"), "must be a number", "'x'")),
        ({"either": 1.5}, Mistake(("either",), "must be a whole number or text", "1.5")),
        ({"name": "Big"}, Mistake(("name",), "must be lower", "Big")),
        ({"part": 3}, Mistake(("part",), "must be a mapping of keys to values", "3")),
    ],
)
def test_a_mistake_is_data(given: dict[str, Any], expected: Mistake) -> None:
    assert mistakes(whole_error(**{"name": "x", **given}), Whole) == [expected]


def test_a_missing_key_and_a_file_that_is_none_are_data() -> None:
    assert mistakes(whole_error(), Whole) == [Mistake(("name",), "is required, and missing")]
    with pytest.raises(ValidationError) as caught:
        Whole.model_validate([])
    (mistake,) = mistakes(caught.value, Whole)
    assert mistake == Mistake((), "must be a mapping of keys to values", "[]")
    assert str(mistake) == "file: must be a mapping of keys to values, got []"


def test_what_a_method_cannot_do_is_a_mistake_of_the_method() -> None:
    with pytest.raises(ValidationError) as caught:
        TrialSpec.model_validate(
            {
                "model": "demo",
                "task": {"type": "causal_lm", "prompt": "{record} ", "response": "{sentence}"},
                "data": {"train": "demo"},
                "quantization": "int8",
                "adapter": {"method": "adamss"},
            }
        )
    assert mistakes(caught.value, TrialSpec) == [
        Mistake(("adapter", "method"), "adamss needs quantization.scheme none, got int8")
    ]


def test_a_line_names_path_what_must_hold_and_what_came() -> None:
    assert str(Mistake(("a", "b"), "must be text", "3")) == "a.b: must be text, got 3"
    assert str(Mistake(("a",), "is required, and missing")) == "a: is required, and missing"
    unknown_key = Mistake(("a", "sise"), "unknown key 'sise'", known=("size",))
    assert str(unknown_key) == ("a.sise: unknown key 'sise' in a; did you mean 'size'? known: size")
    assert str(Mistake(("a",), "unknown key 'a'", known=())) == "a: unknown key 'a' in the file"


def test_without_the_model_paths_are_those_of_pydantic() -> None:
    error = whole_error(name="x", chosen={"kind": "other", "weight": "wide", "wight": 1})
    assert [str(mistake) for mistake in mistakes(error)] == [
        "chosen.other.weight: must be a number, got 'wide'",
        "chosen.other.wight: unknown key 'wight' in chosen.other",
    ]


def test_a_misspelled_name_is_answered_with_the_nearest_two_and_all() -> None:
    assert suggest("tpee", ["tpe", "random"]) == "; did you mean 'tpe'? known: random, tpe"
    assert suggest("stpe", {"type", "step"}) == "; did you mean 'type' or 'step'? known: step, type"
    assert suggest("xxx", ["tpe", "random"]) == "; known: random, tpe"
    assert suggest("xxx", []) == "; known: none"


def test_more_names_than_anyone_reads_are_left_out() -> None:
    names = [f"name{number:02}" for number in range(MAX_NAMES_LISTED)]
    assert suggest("xxx", names) == f"; known: {', '.join(names)}"
    assert suggest("xxx", [*names, "step"]) == ""
    assert suggest("stepp", [*names, "step"]) == "; did you mean 'step'?"


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("stpe", ("type", "step", "low")),
        ("xxx", ("b", "a")),
        ("aa", ("ab", "ab", "ac")),
        ("xxx", ()),
        ("name7", tuple(f"name{number}" for number in range(MAX_NAMES_LISTED))),
        ("name7", tuple(f"name{number}" for number in range(MAX_NAMES_LISTED + 1))),
        ("xxx", tuple(f"name{number}" for number in range(MAX_NAMES_LISTED + 1))),
    ],
)
def test_search_spaces_says_the_same_of_a_misspelled_name(
    name: str, known: tuple[str, ...]
) -> None:
    assert unknown("key", name, known) == f"unknown key {name!r}{suggest(name, known)}"


def test_every_mistake_has_its_line() -> None:
    assert lines(part={"size": 0, "sise": 2}, nmae="x") == [
        "name: is required, and missing",
        "part.size: must be greater than or equal to 1, got 0",
        "part.sise: unknown key 'sise' in part; did you mean 'size'? known: kind, size",
        "nmae: unknown key 'nmae' in the file; did you mean 'name'? "
        "known: chosen, either, name, part, sizes, steps",
    ]


def test_sections_that_are_none_are_told_so() -> None:
    assert lines(name="x", part=3) == ["part: must be a mapping of keys to values, got 3"]
    assert lines(name="x", sizes=[1]) == ["sizes: must be a mapping of keys to values, got [1]"]


def test_a_union_names_its_members_and_not_its_tags() -> None:
    assert lines(name="x", chosen={"kind": "othr"}) == [
        "chosen.kind: unknown kind 'othr'; did you mean 'other'? known: other, part"
    ]
    assert lines(name="x", chosen={"kind": "other", "size": 1}) == [
        "chosen.size: unknown key 'size' in chosen; known: kind, weight"
    ]
    assert lines(name="x", chosen={"kind": "other", "weight": "heavy"})[0].startswith(
        "chosen.weight: must be a number"
    )


def test_keys_of_mappings_stand_in_the_path() -> None:
    (line,) = lines(name="x", sizes={"a": 1.0, "b": "wide"})
    assert line.startswith("sizes.b: must be a number")


def test_long_values_are_cut() -> None:
    (line,) = lines(name=["x" * 500])
    assert line.startswith("name: must be text, got ['xxx")
    assert len(line) < 130
