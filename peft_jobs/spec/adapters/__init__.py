"""The adapter section of a trial: one class per method, told apart by `method`.

section        Adapter: what all sections share
lora           LoRA and its variants, by PEFT's field names
adalora        LoRA whose ranks are cut during training
products       LoHa, LoKr, VeRA, MiSS and OFT
scaling        (IA)3 and LN-tuning
prompts        methods that train virtual tokens
beyond_peft    bottleneck adapters and full fine-tuning, which PEFT does not have
rest_of_peft   PEFT's other methods, by a table
continuation   `adapter.from`: what follows from an adapter that was saved before

A new method is a file here, a file in `peft_jobs/methods`, and an entry in ADAPTERS and METHODS.
"""

from collections.abc import Mapping
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError
from pydantic_core import PydanticCustomError

from peft_jobs.errors import DataError, SpecError
from peft_jobs.spec.adapters.adalora import AdaLoraSpec
from peft_jobs.spec.adapters.beyond_peft import OWN, BottleneckSpec, FullSpec
from peft_jobs.spec.adapters.continuation import (
    FROM,
    agreeing,
    continued,
    is_free,
    saved_section,
)
from peft_jobs.spec.adapters.lora import LoraSpec
from peft_jobs.spec.adapters.products import LohaSpec, LokrSpec, MissSpec, OftSpec, VeraSpec
from peft_jobs.spec.adapters.prompts import (
    PrefixTuningSpec,
    PromptTuningSpec,
    PTuningSpec,
    PTuningV2Spec,
)
from peft_jobs.spec.adapters.rest_of_peft import OTHERS, REFUSED, SECTIONS
from peft_jobs.spec.adapters.scaling import Ia3Spec, LnTuningSpec
from peft_jobs.spec.adapters.section import Adapter, AdapterSource, TargetedAdapter
from peft_jobs.storage.saved_adapter import (
    AdapterError,
    SavedAdapter,
    adapter_digest,
    adapter_folder,
    read_adapter,
)

__all__ = [
    "ADAPTERS",
    "CONTINUATION",
    "OTHERS",
    "OWN",
    "REFUSED",
    "AdaLoraSpec",
    "Adapter",
    "AdapterSource",
    "AdapterSpec",
    "BottleneckSpec",
    "FullSpec",
    "Ia3Spec",
    "LnTuningSpec",
    "LohaSpec",
    "LokrSpec",
    "LoraSpec",
    "MissSpec",
    "OftSpec",
    "PTuningSpec",
    "PTuningV2Spec",
    "PrefixTuningSpec",
    "PromptTuningSpec",
    "TargetedAdapter",
    "VeraSpec",
    "carried",
    "going_on",
    "saved_adapter",
]

ADAPTERS: Mapping[str, type[Adapter]] = {
    "lora": LoraSpec,
    "adalora": AdaLoraSpec,
    "ia3": Ia3Spec,
    "ln_tuning": LnTuningSpec,
    "prompt_tuning": PromptTuningSpec,
    "p_tuning": PTuningSpec,
    "prefix_tuning": PrefixTuningSpec,
    "p_tuning_v2": PTuningV2Spec,
    "bottleneck": BottleneckSpec,
    "loha": LohaSpec,
    "lokr": LokrSpec,
    "oft": OftSpec,
    "vera": VeraSpec,
    "miss": MissSpec,
    "full": FullSpec,
    **SECTIONS,
}
_TARGETS = "target_modules"


CONTINUATION = "continuation"
"""pydantic's type of a mistake in `adapter.from`."""


def _known(value: Any) -> Any:
    """`value`, with what follows from a saved adapter that it names; LoRA by default.

    Refuses PEFT's methods that are not offered with the reason.
    """
    if not isinstance(value, Mapping):
        return value
    if value.get(FROM) is not None:
        try:
            value = continued(value, ADAPTERS, REFUSED)
        except ValidationError:
            pass  # no source at all: the field itself tells
        except SpecError as error:
            raise PydanticCustomError(CONTINUATION, "{reason}", {"reason": str(error)}) from error
    method = value.get("method", "lora")
    if isinstance(method, str) and method in REFUSED:
        raise ValueError(f"method {method} is not offered: {REFUSED[method]}")
    return {"method": method, **value}


def going_on(adapter: Adapter, params: Mapping[str, Any]) -> dict[str, Any] | None:
    """The raw section of a trial that goes on from a saved adapter; None if it begins anew.

    `adapter` is what the trials of a sweep share, `params` the fields of a point, by their names in
    the section. Where the point brings the saved adapter, what the shared section holds beside its
    defaults counts as written. Raises SpecError for what contradicts the saved adapter.
    """
    given = dict(params)
    if FROM not in given and adapter.source is not None:
        return agreeing(adapter.model_dump(mode="json"), given, ADAPTERS)
    if given.get(FROM) is None:
        return None
    defaults = {"method": "lora", **_defaults(type(adapter))}
    follows = adapter.source is not None  # then only what is free was written
    for name, value in adapter.model_dump(mode="json", exclude={FROM}).items():
        if is_free(name) if follows else getattr(adapter, name) != defaults[name]:
            given.setdefault(name, value)
    return continued(given, ADAPTERS, REFUSED)


def saved_adapter(adapter: Adapter) -> SavedAdapter:
    """The saved adapter that a section goes on from, read from its files.

    Raises DataError if it is gone, or is no longer the one that the spec was read with, SpecError
    if the section contradicts it.
    """
    source = adapter.source
    assert source is not None
    try:
        folder = adapter_folder(source.name_or_path, source.revision)
        digest = adapter_digest(folder)
        saved = read_adapter(folder)
    except AdapterError as error:
        raise DataError(f"adapter.from: {error}") from error
    if digest != source.sha256:
        raise DataError(
            f"adapter.from: {source.name_or_path} has changed since the trial was made: its files "
            f"have sha256 {digest[:16]}..., the trial's {str(source.sha256)[:16]}..."
        )
    own = saved_section(saved, ADAPTERS, REFUSED) | {FROM: source.model_dump()}
    here = adapter.model_dump(mode="json", exclude={FROM, "eva_config", "corda_config"})
    try:
        agreeing(own, here, ADAPTERS)
    except SpecError as error:
        raise SpecError(f"adapter.from: {error}") from error
    return saved


def carried(adapter: Adapter, section: Mapping[str, Any]) -> dict[str, Any]:
    """What holds of `adapter` for the raw `section` of another method too, beside its own fields.

    A field that both methods have and that means the same in both, which is where they start from
    one default (a rank of 8 is LoRA's and LoHa's, and not VeRA's, whose default is 256); and the
    targets, where they are not the method's own choice, since methods are compared on the same
    modules. A value that is not valid in the section is left out.
    """
    other = ADAPTERS.get(str(section.get("method")))
    if other is None or not _is_valid(other, section):
        return {}
    mine, theirs = _defaults(type(adapter)), _defaults(other)
    values = adapter.model_dump(mode="json")
    shared = {
        name: values[name]
        for name in values.keys() & mine.keys() & theirs.keys() - section.keys()
        if mine[name] == theirs[name]
    }
    targeted = isinstance(adapter, TargetedAdapter) and issubclass(other, TargetedAdapter)
    if targeted and values[_TARGETS] != mine[_TARGETS] and _TARGETS not in section:
        shared[_TARGETS] = values[_TARGETS]
    found: dict[str, Any] = {}
    for name, value in sorted(shared.items()):
        if _is_valid(other, {**section, **found, name: value}):
            found[name] = value
    return found


def _defaults(section: type[Adapter]) -> dict[str, Any]:
    return {
        name: field.get_default(call_default_factory=True)
        for name, field in section.model_fields.items()
        if name not in ("method", FROM)
    }


def _is_valid(section: type[Adapter], raw: Mapping[str, Any]) -> bool:
    try:
        section.model_validate(raw)
    except ValidationError:
        return False
    return True


if TYPE_CHECKING:
    AdapterSpec = Adapter
else:
    AdapterSpec = Annotated[
        reduce(or_, ADAPTERS.values()), Field(discriminator="method"), BeforeValidator(_known)
    ]
