"""Dotted names of a spec's fields: `adapter.r`; the inverse of `TrialSpec.with_params`."""

from typing import Any

from pydantic import BaseModel

from peft_jobs.spec.mistakes import models_in


def flatten(spec: BaseModel) -> dict[str, Any]:
    """A spec's leaves by dotted name."""
    leaves: dict[str, Any] = {}

    def visit(prefix: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for key, item in value.items():
                visit(f"{prefix}.{key}" if prefix else key, item)
        else:
            leaves[prefix] = value

    visit("", spec.model_dump(mode="json"))
    return leaves


def paths_of(model: type[BaseModel], prefix: str = "") -> set[str]:
    """Every dotted path of the sections of `model`, all members of a union included."""
    paths = set()
    for name, field in model.model_fields.items():
        path = f"{prefix}{name}"
        paths.add(path)
        for inner in models_in(field.annotation):
            paths |= paths_of(inner, f"{path}.")
    return paths
