"""`adapter.from`: a trial goes on from an adapter that was saved before.

What shapes that adapter's weights, or what they compute, is filled in from its
`adapter_config.json` when a spec is read; how it is trained is free. The hash of its files becomes
a part of the spec: an adapter that has changed makes another trial. A spec with the hash is
complete, and is read on machines that do not have the adapter.
"""

import json
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from peft_jobs.errors import SpecError
from peft_jobs.spec.adapters.section import Adapter, AdapterSource
from peft_jobs.spec.mistakes import mistakes, suggest
from peft_jobs.storage.saved_adapter import (
    SavedAdapter,
    adapter_digest,
    adapter_folder,
    read_adapter,
)

FROM = "from"
PLACES = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
"""They may be written otherwise than the saved adapter has them: the base tells whether they stand
for the same modules (`peft_jobs.methods.continuation`)."""
_WRITTEN_BY_MACHINE = "modules_to_save"
"""Every section that was dumped holds it; beside a hash that a person wrote, it may be missing."""
_FREE = ("loraplus_lr_ratio",)
"""Fields of the training alone, beside all rates of dropout."""
_BEGINNINGS: Mapping[str, Any] = {
    "init_lora_weights": "default",
    **dict.fromkeys(("eva_config", "corda_config")),
}
"""Fields that say how an adapter begins, with the one value that does not."""
_OTHER_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initialisations after which the base has other weights than its checkpoint."""
_USUAL_HEADS = ("classifier", "pre_classifier", "classification_head", "score", "qa_outputs")
"""PEFT names some of them for every classifier; a task's head is trained whole anyway."""
_NOT_CONTINUED = {
    "adalora": "its ranks were cut to their end; merge it, and give the merged model as `model`",
    "full": "it is no adapter but a whole model; export it with --to merged, and give that as "
    "`model`",
    **dict.fromkeys(
        ("prompt_tuning", "p_tuning", "prefix_tuning", "p_tuning_v2"),
        "PEFT does not train virtual tokens that were loaded",
    ),
}
"""Methods that cannot go on, and why."""


def is_free(field: str) -> bool:
    """Whether a field of an adapter says how it is trained, and nothing of what it computes."""
    return field in _FREE or "dropout" in field


def continued(
    given: Mapping[str, Any], sections: Mapping[str, type[Adapter]], refused: Mapping[str, str]
) -> dict[str, Any]:
    """The raw section `given`, whose `from` names a saved adapter, with all that follows from it.

    `sections` are the methods by name, `refused` those that are not offered. Raises SpecError if
    there is no such adapter, for one that cannot be gone on from, and for what contradicts it;
    pydantic's ValidationError for a `from` that is no source.
    """
    named = given[FROM]
    source = AdapterSource.model_validate(
        {"name_or_path": named} if isinstance(named, str) else named
    )
    if source.sha256 is not None and _WRITTEN_BY_MACHINE in given:
        return dict(given)
    folder = adapter_folder(source.name_or_path, source.revision)
    saved = read_adapter(folder)
    own = saved_section(saved, sections, refused)
    local = str(folder) if source.is_local else source.name_or_path
    digest = adapter_digest(folder)
    if source.sha256 not in (None, digest):
        raise SpecError(f"the files in {folder} have sha256 {digest}, and not {source.sha256}")
    own[FROM] = {**source.model_dump(), "name_or_path": local, "sha256": digest}
    return agreeing(own, {name: value for name, value in given.items() if name != FROM}, sections)


def saved_section(
    saved: SavedAdapter, sections: Mapping[str, type[Adapter]], refused: Mapping[str, str]
) -> dict[str, Any]:
    """The raw section that a saved adapter's settings stand for. Raises SpecError."""
    settings, where = saved.settings, saved.folder
    method = _method(settings["peft_type"], settings)
    if method in refused:
        raise SpecError(f"the adapter in {where} is {method}, not offered: {refused[method]}")
    if method not in sections:
        raise SpecError(f"unknown peft_type of {where}: {method!r}{suggest(method, sections)}")
    if method in _NOT_CONTINUED:
        raise SpecError(f"{method} cannot be gone on from: {_NOT_CONTINUED[method]} ({where})")
    begun = settings.get("init_lora_weights")
    if isinstance(begun, str) and begun.startswith(_OTHER_BASE):
        raise SpecError(
            f"the adapter in {where} began as {begun}, which changes weights of the base, and was "
            "saved without them: save it for the untouched base (PEFT's "
            "path_initial_model_for_weight_conversion), or give the changed base as `model` and "
            "set init_lora_weights true in its adapter_config.json"
        )
    known = settings.get("adapter") if method == "bottleneck" else settings
    known = known if isinstance(known, dict) else {}
    section = sections[method]
    found: dict[str, Any] = {
        name: known[name]
        for name in section.model_fields
        if name not in (*_BEGINNINGS, FROM, "method") and known.get(name) is not None
    }
    if "target_modules" in section.model_fields:
        found.setdefault("target_modules", ())
    found["modules_to_save"] = _beside_heads(found.get("modules_to_save", []))
    found["method"] = method
    try:
        section.model_validate(found)
    except ValidationError as error:
        told = "; ".join(map(str, mistakes(error, section)))
        raise SpecError(f"the settings of the adapter in {where} are not offered: {told}") from None
    return found


def _method(peft_type: str, settings: Mapping[str, Any]) -> str:
    method = peft_type.lower()
    if method == "prefix_tuning" and not settings.get("prefix_projection"):
        return "p_tuning_v2"
    return method


def agreeing(
    own: Mapping[str, Any], given: Mapping[str, Any], sections: Mapping[str, type[Adapter]]
) -> dict[str, Any]:
    """`own`, the raw section of a saved adapter, with what is `given` beside it.

    Raises SpecError for what is given and contradicts it, naming both values.
    """
    section = sections[own["method"]]
    found, differing = dict(own), {}
    kept = section.model_validate({k: v for k, v in own.items() if k != FROM})
    for name, value in given.items():
        if name == "method":
            is_same = value == own["method"]
        elif name not in section.model_fields or is_free(name) or name in PLACES:
            found[name] = value  # a name that the method does not have is told as any other
            continue
        elif name in _BEGINNINGS:
            is_same = value in (_BEGINNINGS[name], None, True)
        else:
            is_same = _is_same(name, value, kept)
        if not is_same:
            differing[name] = value
    if differing:
        raise SpecError(_contradiction(kept, differing, own[FROM]["name_or_path"]))
    return found


def _is_same(name: str, value: Any, kept: Adapter) -> bool:
    """Whether a raw value of a field means what the section `kept` has there."""
    if name == "modules_to_save":
        value = _beside_heads(value)
    try:
        changed = type(kept).model_validate({**kept.model_dump(), name: value})
    except ValidationError:
        return False
    return bool(getattr(changed, name) == getattr(kept, name))


def _beside_heads(names: Any) -> Any:
    """Modules to save, as they came, but for the usual heads."""
    if not isinstance(names, list | tuple):
        return names
    return [name for name in names if name not in _USUAL_HEADS]


def _contradiction(kept: Adapter, differing: Mapping[str, Any], where: str) -> str:
    there, told = kept.model_dump(mode="json"), []
    for name, value in differing.items():
        if name in _BEGINNINGS:
            told.append(f"{name} {_shown(value)} begins a new adapter")
        else:
            told.append(f"{name} is {_shown(there.get(name, []))} there and {_shown(value)} here")
    names = ", ".join(f"adapter.{name}" for name in differing)
    return (
        f"{where} contradicts what is written or sampled: {'; '.join(told)}; leave out {names}, or "
        "begin anew without adapter.from"
    )


def _shown(value: Any) -> str:
    """A value as YAML has it."""
    if isinstance(value, str):
        return value
    return f"{value:g}" if type(value) is float else json.dumps(value, default=str)
