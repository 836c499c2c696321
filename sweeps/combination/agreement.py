"""Refuses adapters that were not made for one base and one task, before a model is loaded."""

from collections.abc import Iterator, Sequence
from typing import Any

from peft_jobs import SpecError
from peft_jobs.spec.combination import CombinationSpec, refusals
from sweeps.combination.ingredients import Ingredient

_BASE = ("name_or_path", "revision", "dtype")
"""Of the section model: what says which weights the base has."""
_CONTENTS = {"config": "the base's config.json", "tokenizer": "the tokenizer"}
"""Fingerprints of a trial's result that must agree, and what they are of."""


def check_agreement(
    parts: Sequence[Ingredient],
    hows: Sequence[CombinationSpec],
    weights: Sequence[float] | None = None,
) -> None:
    """SpecError with all that keeps the adapters from being combined in each of these ways."""
    found = [*_disagreements(parts)]
    saved = {f"trial {part.label}": part.saved for part in parts}
    for how in hows:
        found += refusals(saved, how, weights)
    if found:
        raise SpecError("these adapters cannot be combined:\n" + _listed(found))


def _disagreements(parts: Sequence[Ingredient]) -> Iterator[str]:
    """What of base, task and form of the rows differs from the first adapter's."""
    first = parts[0]
    for part in parts[1:]:
        both = f"{first.label} and {part.label}"
        if _can_compare_weights(first, part):
            if first.provenance["weights"] != part.provenance["weights"]:
                yield f"{both} are of bases with other weights: leave one out"
        else:
            yield from _fields(first, part, "model", _BASE)
        yield from _fields(first, part, "quantization")
        yield from _fields(first, part, "task")
        for name, words in _CONTENTS.items():
            seen = {each.provenance.get(name) for each in (first, part)} - {None}
            if len(seen) > 1:
                yield f"{both} differ in {words}: leave one out"


def _can_compare_weights(one: Ingredient, other: Ingredient) -> bool:
    """Whether both results say which weights the base had, on a device of the same kind."""
    seen = [each.provenance for each in (one, other)]
    return all("weights" in each for each in seen) and seen[0]["device"] == seen[1]["device"]


def _fields(
    first: Ingredient, other: Ingredient, section: str, names: Sequence[str] | None = None
) -> Iterator[str]:
    """Fields of a section that differ between two trials, with both values."""
    one: dict[str, Any]
    one, two = (getattr(p.spec, section).model_dump(mode="json") for p in (first, other))
    for name in names or sorted(one.keys() | two.keys()):
        if one.get(name) != two.get(name):
            yield (
                f"{section}.{name} is {one.get(name)!r} in {first.label} and {two.get(name)!r} in "
                f"{other.label}: leave one out"
            )


def _listed(found: Sequence[str]) -> str:
    return "\n".join(f"  {line}" for line in dict.fromkeys(found))
