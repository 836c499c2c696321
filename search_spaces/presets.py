"""Spaces from the mapping under `space:` in a sweep file, and the presets that it may name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import ValidationError, WrapValidator

from search_spaces.errors import SpaceError, unknown
from search_spaces.functions import FunctionSpace
from search_spaces.space import SearchSpace

_FOLDER = Path(__file__).parent / "presets"
QUESTIONS = (
    *("first-look", "lora-small", "lora", "lora-large", "qlora", "qlora-24gb", "extreme-memory"),
    *("methods", "few-shot", "classification", "generation"),
)
METHODS = (
    *("lora-variants", "adalora", "ia3", "ln-tuning", "prompts", "bottleneck", "lycoris", "oft"),
    *("vera", "miss", "full"),
)
PRESETS: Mapping[str, Path] = {name: _FOLDER / f"{name}.yaml" for name in (*QUESTIONS, *METHODS)}
"""By the question that a person has, then by method."""


def load_space(raw: object) -> SearchSpace | FunctionSpace:
    """The space that the mapping `raw` declares.

    With `preset`, the file's parameters replace those of the preset by name or are added, which
    leaves out what of the preset is never active then. The file's constraints are appended, its
    points come first, then the preset's, as far as replaced parameters still have their values;
    an empty list of points means none.

    SpaceError for an unknown preset; otherwise pydantic's ValidationError (a ValueError as well),
    which holds all mistakes with their places.
    """
    if isinstance(raw, SearchSpace | FunctionSpace):
        return raw
    if not isinstance(raw, Mapping):
        raise SpaceError(f"a space must be a mapping, got {type(raw).__name__}")
    if "function" in raw:
        return FunctionSpace.model_validate(raw)
    if "preset" not in raw:
        return SearchSpace.model_validate(raw)
    merged = _with_preset(raw)
    try:
        return SearchSpace.model_validate(merged)
    except ValidationError as error:
        own, parameters = raw.get("parameters"), merged["parameters"]
        idle = {line["loc"][1] for line in error.errors() if line["loc"][2:] == ("when",)}
        idle -= set(own) if isinstance(own, Mapping) else set()
        if not idle or not isinstance(parameters, Mapping):
            raise
        active = {name: value for name, value in parameters.items() if name not in idle}
        return SearchSpace.model_validate({**merged, "parameters": active})


ReadSpace = Annotated[SearchSpace | FunctionSpace, WrapValidator(lambda raw, _: load_space(raw))]
"""The type of a pydantic field that is read by `load_space`."""


def _with_preset(raw: Mapping[str, object]) -> dict[str, object]:
    name = str(raw["preset"])
    if name not in PRESETS:
        raise SpaceError(unknown("preset", name, PRESETS))
    preset = yaml.safe_load(PRESETS[name].read_text(encoding="utf-8"))
    merged = {key: value for key, value in raw.items() if key != "preset"}
    parameters, constraints = raw.get("parameters") or {}, raw.get("constraints") or []
    if isinstance(parameters, Mapping):
        merged["parameters"] = {**preset["parameters"], **parameters}
    if isinstance(constraints, list | tuple):
        merged["constraints"] = [*preset.get("constraints", []), *constraints]
    given = raw.get("points_to_evaluate")
    if isinstance(parameters, Mapping) and (given is None or isinstance(given, list | tuple)):
        known = [] if given == [] else preset.get("points_to_evaluate", [])
        kept = [point for point in known if _may_be(point, parameters)]
        merged["points_to_evaluate"] = [*(given or []), *kept]
    return merged


def _may_be(point: Mapping[str, object], parameters: Mapping[object, object]) -> bool:
    """Whether those of `parameters` that the point gives have its values among their choices."""
    for name in point.keys() & parameters.keys():
        declared = parameters[name]
        choices = declared.get("choices") if isinstance(declared, Mapping) else None
        if not isinstance(choices, list | tuple) or point[name] not in choices:
            return False
    return True
