"""`schema`: the JSON schema of the sweep file, shorthands included, for editors and other tools."""

from typing import Any

from peft_jobs.spec import TrialSpec
from search_spaces import PRESETS
from sweeps.search.pruners import PRUNERS
from sweeps.search.samplers import SAMPLERS
from sweeps.spec import SweepSpec

_SHORTHANDS: dict[str, dict[str, Any]] = {
    "ModelSpec": {"type": "string", "description": "name_or_path"},
    "AdapterSource": {"type": "string", "description": "name_or_path: a folder, or a Hub id"},
    "QuantizationSpec": {"enum": ["none", "int8", "nf4", "fp4"]},
    "Source": {"type": "string", "description": "path: a file, a Hub id, or `demo`"},
    "SamplerSpec": {"enum": sorted(SAMPLERS)},
    "PrunerSpec": {"enum": sorted(PRUNERS)},
    "TrackingSpec": {"enum": ["none", None]},
}
"""What may stand in a file in place of a section's mapping."""
_BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}


def sweep_file_schema() -> dict[str, Any]:
    """The schema: the sections of a trial stand at the top level, as in the file."""
    schema = SweepSpec.model_json_schema()
    sections, definitions = schema["properties"], schema["$defs"]
    trial = definitions.pop(TrialSpec.__name__)
    del sections["trial"]
    definitions["SamplerSpec"]["properties"]["type"]["enum"] = sorted(SAMPLERS)
    definitions["PrunerSpec"]["properties"]["type"]["enum"] = sorted(PRUNERS)
    for name, shorthand in _SHORTHANDS.items():
        definitions[name] = {"anyOf": [definitions[name], shorthand]}
    _read_space(definitions)
    _name_bounds([trial, sections, definitions])
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "peft-sweep sweep file",
        "description": SweepSpec.__doc__,
        "type": "object",
        "properties": {**trial["properties"], **sections},
        "required": [*trial["required"], "space", "budget"],
        "additionalProperties": False,
        "$defs": definitions,
    }


def _read_space(definitions: dict[str, Any]) -> None:
    """Allow what `load_space` reads: a preset, parameters without `type`, values, expressions."""
    space = definitions["SearchSpace"]
    space["properties"]["preset"] = {"enum": sorted(PRESETS)}
    space.pop("required", None)
    space["properties"]["parameters"]["additionalProperties"] = {
        "anyOf": [
            {"$ref": "#/$defs/Float"},
            {"$ref": "#/$defs/Int"},
            {"$ref": "#/$defs/Categorical"},
            {"$ref": "#/$defs/Fixed"},
            {"$ref": "#/$defs/Derived"},
            {"type": ["string", "number", "boolean", "null"]},
        ]
    }


def _name_bounds(node: Any) -> None:
    """Rename the bounds that pydantic 2.14 leaves unnamed where a validator stands before them."""
    if isinstance(node, dict):
        for ours, theirs in _BOUNDS.items():
            if isinstance(node.get(ours), int | float):
                node[theirs] = node.pop(ours)
    for inner in node.values() if isinstance(node, dict) else node:
        if isinstance(inner, dict | list):
            _name_bounds(inner)
