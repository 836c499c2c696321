"""Mistakes as plain lines: path, what must hold, what came, and the nearest name."""

from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from peft_jobs.spec.mistakes import mistakes, suggest


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
    either: int | str = 0


def lines(**given: Any) -> list[str]:
    with pytest.raises(ValidationError) as caught:
        Whole.model_validate(given)
    return mistakes(caught.value, Whole)


def test_a_misspelled_name_is_answered_with_the_nearest_and_all() -> None:
    assert suggest("tpee", ["tpe", "random"]) == "; did you mean 'tpe'? known: random, tpe"
    assert suggest("xxx", ["tpe", "random"]) == "; known: random, tpe"


def test_every_mistake_has_its_line() -> None:
    assert lines(part={"size": 0, "sise": 2}, nmae="x") == [
        "name: is required, and missing",
        "part.size: must be greater than or equal to 1, got 0",
        "part.sise: unknown key 'sise' in part; did you mean 'size'? known: kind, size",
        "nmae: unknown key 'nmae' in the file; did you mean 'name'? "
        "known: chosen, either, name, part, sizes",
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
